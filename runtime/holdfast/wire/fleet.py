"""The nine calls of Flower's Fleet API that the tunnel carries, by name.

Registration, and fetching code, are not among them. Both ends of the tunnel check against this one list.
"""

from __future__ import annotations

FLEET_PATHS = frozenset(
    {
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "push-object",
        "pull-object",
        "confirm-message-received",
    }
)
