"""HTTP/2 without sockets: bytes in, events and bytes out (RFC 9113, RFC 7541)."""
