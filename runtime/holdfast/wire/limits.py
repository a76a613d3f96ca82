"""Every bound on what travels, with its unit and its reason; checked before parsing."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 4_194_304  # 4 MiB: gRPC's own default; blobs travel in pieces
MAX_PIECE_BYTES = 1_048_576  # 1 MiB: one piece of a blob, small enough to retry on a weak line
MAX_FLEET_BODY_BYTES = 16_777_216  # 16 MiB: Flower cuts arrays into 5 MB objects; 3x margin
MAX_FLEET_MESSAGE_BYTES = MAX_FLEET_BODY_BYTES + 65_536  # the same with its path and headers
MAX_REPORT_BYTES = 262_144  # 256 KiB: one record; a window of 50 models is about 50 KiB
MAX_RECORDS_PER_REPORT = 256  # one call; a backlog is sent in several
MAX_STRING_CHARACTERS = 8_192  # PEM texts are the longest strings that travel
MAX_ITEMS = 4_096  # entries of one repeated field or map
MAX_STATEMENT_BYTES = 65_536  # 64 KiB: an offer, update statement, assignment or promise
MAX_DOCUMENT_BYTES = 131_072  # 128 KiB: a policy, approval or manifest signature in JSON
MAX_BLOB_BYTES = 4_294_967_296  # 4 GiB: a bundle container
