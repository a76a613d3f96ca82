"""A device's Flower node key as the SuperLink and its headers write it. Without flwr, for the gate."""

from __future__ import annotations

from cryptography.hazmat.primitives import serialization

from holdfast.errors import RoundError


def node_key_pem(public_key_openssh: str) -> str:
    """PEM of an OpenSSH public key. Raises: RoundError: it is not one."""
    try:
        key = serialization.load_ssh_public_key(public_key_openssh.encode("ascii"))
    except (ValueError, UnicodeEncodeError) as error:
        raise RoundError("not an OpenSSH public key; a Flower node key is ecdsa-sha2-nistp384") from error
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode("ascii")
