"""The Huffman code of HPACK (RFC 7541 5.2 and Appendix B).

Rules: decoding refuses padding that is not the start of EOS, padding of 8 bits or more, and EOS itself; no input makes
it take more than 8/5 of its own length. The table of transitions is filled as it is used: one entry per state and
byte, at most 256 x 256, because a whole one costs 8 MB and ordinary text needs a few hundred entries.
"""

from __future__ import annotations

EOS = 256
# Code lengths in bits, by symbol. The code is canonical, so they say all (RFC 7541 Appendix B).
_LENGTHS = (
    "13 23 28 28 28 28 28 28 28 24 30 28 28 30 28 28 28 28 28 28 28 28 30 28 28 28 28 28 28 28 28 28 6 10 10 12 13 "
    "6 8 11 10 10 8 11 8 6 6 6 5 5 5 6 6 6 6 6 6 6 7 8 15 6 12 10 13 6 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 "
    "8 7 8 13 19 13 14 6 15 5 6 5 6 5 6 6 6 5 7 7 6 6 6 5 6 7 6 5 5 6 7 7 7 7 7 15 11 14 13 28 20 22 20 20 22 22 22 "
    "23 22 23 23 23 23 23 24 23 24 24 22 23 24 23 23 23 23 21 22 23 22 23 23 24 22 21 20 22 22 23 23 21 23 22 22 24 "
    "21 22 23 23 21 21 22 21 23 22 23 23 20 22 22 22 23 22 22 23 26 26 20 19 22 23 22 25 26 26 26 27 27 26 24 25 19 "
    "21 26 27 27 26 27 24 21 21 26 26 28 27 27 27 20 24 20 21 22 21 21 23 22 22 25 25 24 24 26 23 26 27 26 26 27 27 "
    "27 27 27 28 27 27 27 27 27 26 30"
)

_State = int  # an inner node of the code tree, 0 = root
_REFUSED: tuple[_State, bytes] = (-1, b"")


class HuffmanError(Exception):
    """Not a string in this code."""


def _codes() -> tuple[tuple[int, int], ...]:
    """(code, length) by symbol, EOS last."""
    lengths = [int(length) for length in _LENGTHS.split()]
    codes = [(0, 0)] * len(lengths)
    code = before = 0
    for symbol in sorted(range(len(lengths)), key=lambda symbol: (lengths[symbol], symbol)):
        code <<= lengths[symbol] - before
        before = lengths[symbol]
        codes[symbol] = (code, before)
        code += 1
    return tuple(codes)


def _tree() -> tuple[list[list[int]], frozenset[int]]:
    """Inner nodes with their two children (>= 0 a node, < 0 the symbol ~child), and the states padding may end in."""
    nodes: list[list[int | None]] = [[None, None]]
    for symbol, (code, length) in enumerate(CODES):
        node = 0
        for shift in range(length - 1, 0, -1):
            child = nodes[node][code >> shift & 1]
            if child is None:
                child = len(nodes)
                nodes[node][code >> shift & 1] = child
                nodes.append([None, None])
            node = child
        nodes[node][code & 1] = ~symbol
    padding, node = {0}, 0
    for _ in range(7):  # up to 7 bits of EOS, which is all ones
        node = nodes[node][1] or 0
        padding.add(node)
    return [[child if child is not None else ~EOS for child in pair] for pair in nodes], frozenset(padding)


CODES = _codes()
_NODES, _PADDING = _tree()
_steps: dict[int, tuple[_State, bytes]] = {}  # state << 8 | byte: filled on demand, never more than 65 536


def decode(data: bytes) -> bytes:
    """The text of a Huffman-coded string.

    Raises:
        HuffmanError: EOS inside, or wrong padding.
    """
    state = 0
    out = []
    steps = _steps
    for byte in data:
        key = state | byte
        step = steps.get(key)
        if step is None:
            step = _step(key >> 8, byte)
            steps[key] = step
        state, text = step
        if text:
            out.append(text)
        elif state < 0:
            raise HuffmanError("EOS inside a Huffman string")
    if state >> 8 not in _PADDING:
        raise HuffmanError("wrong padding of a Huffman string")
    return b"".join(out)


def encode(data: bytes) -> bytes:
    """The Huffman code of a text. For tests and clients: answers are sent uncoded, which costs less to make."""
    bits = size = 0
    for byte in data:
        code, length = CODES[byte]
        bits = bits << length | code
        size += length
    spare = -size % 8
    return (bits << spare | (1 << spare) - 1).to_bytes((size + spare) // 8, "big")


def _step(node: int, byte: int) -> tuple[_State, bytes]:
    """From a node over 8 bits: the next state, shifted for use as a key, and what was read on the way."""
    text = bytearray()
    for shift in range(7, -1, -1):
        child = _NODES[node][byte >> shift & 1]
        if child == ~EOS:
            return _REFUSED
        if child < 0:
            text.append(~child)
            node = 0
        else:
            node = child
    return node << 8, bytes(text)
