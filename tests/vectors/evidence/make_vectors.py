"""Makes `v1.evidence` and its root keys: `python -m tests.vectors.evidence.make_vectors` in the repository's root.

Run it only for a NEW version of the format, under a new name: the file stands for those that are out in the world and
must stay readable. The private keys are thrown away.
"""

from __future__ import annotations

from pathlib import Path

from tests.fakes.evidence_world import World

FOLDER = Path(__file__).parent


def main() -> None:
    """Write the file and one public key per root."""
    world = World()
    (FOLDER / "v1.evidence").write_bytes(world.export())
    (FOLDER / "v1-roots").mkdir(exist_ok=True)
    for root in world.roots():
        name = f"{root.role}-{root.name}.pub" if root.name else f"{root.role}.pub"
        (FOLDER / "v1-roots" / name).write_text(root.key.to_pem())


if __name__ == "__main__":
    main()
