"""What a peer can do wrong on an HTTP/2 connection, with the code it is told (RFC 9113 7).

Rules: a ConnectionFault ends the connection, a StreamFault one stream; neither carries a byte of the peer's content.
These are not part of the tree in `holdfast.errors`: they end inside the connection and no caller sees them.
"""

from __future__ import annotations

from enum import IntEnum


class ErrorCode(IntEnum):
    """Codes of RST_STREAM and GOAWAY."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class Http2Fault(Exception):
    """The peer broke a rule. The text is ours and safe to log."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class ConnectionFault(Http2Fault):
    """Nothing more can be understood or allowed on this connection."""


class StreamFault(Http2Fault):
    """One stream ends; the others go on."""

    def __init__(self, stream_id: int, code: ErrorCode, text: str) -> None:
        super().__init__(code, text)
        self.stream_id = stream_id
