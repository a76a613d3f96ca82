"""A policy as people write it: TOML with comments, relative expiry, and safe defaults.

The signed form is JSON (`holdfast.policy.rules`); TOML is only for the hand. `number`, `issued` and `expires` are
worked out when signing: the number is the next one after the last signed, and `valid_days` sets the expiry.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from holdfast.errors import PolicyError, StateError
from holdfast.policy.rules import SCHEMA, Policy, format_time, from_mapping
from holdfast.wire.limits import MAX_DOCUMENT_BYTES

DEFAULT_VALID_DAYS = 365
MAX_VALID_DAYS = 3_650  # ten years; longer is a policy that nobody will look at again
NS_PER_DAY = 86_400_000_000_000

TEMPLATE = """\
# What the devices of this site may do. Sign it with: holdfast site sign-policy {folder}
# Nothing here takes effect until it is signed with the site's own key and installed on a device.
site = "{site}"
valid_days = {valid_days}          # after that, no rounds and no data windows until a newer policy is signed

[reports]
operational = true         # request counts and latencies; they say nothing about the data
data = false               # bin counts of features, confidence and predictions, in slow windows
minimum_rows = 100         # a data window closes only with at least this many rows

[rounds]
purposes = []              # for example ["digits-quality"]; a purpose that is not named is refused
handlers = ["train", "evaluate"]
unsigned_runs = false      # stock Flower runs: nobody signs for their purpose, cohort or clip
minimum_cohort = 2         # fewest devices in a round
minimum_rows = 100         # smallest local data set that may answer
require_clip = true        # offers must bound the norm of an update
# epsilon_budget = 8.0     # privacy loss of all rounds together; left out = not limited
# maximum_rounds_per_day = 24
# hours_utc = [20, 6]      # only from 20:00 to 06:00

[byte_budgets]             # bytes per day and purpose; a purpose that is not named is not limited
# digits-quality = 100000000
"""


def render_template(site: str, folder: str) -> str:
    """The commented template for a new site."""
    escaped = site.replace("\\", "\\\\").replace('"', '\\"')
    return TEMPLATE.format(site=escaped, folder=folder, valid_days=DEFAULT_VALID_DAYS)


def read_source(path: Path) -> str:
    """The text of a policy source, bounded.

    Raises:
        StateError: it cannot be read.
        PolicyError: too large, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise StateError(f"policy source {path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_DOCUMENT_BYTES:
        raise PolicyError(f"policy source {path} is larger than {MAX_DOCUMENT_BYTES} bytes; is it the right file?")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PolicyError(f"policy source {path} is not UTF-8 text") from error


def policy_from_toml(text: str, *, number: int, issued_utc_ns: int) -> Policy:
    """The policy that a TOML source describes.

    Raises:
        PolicyError: not TOML, an unknown key, or a value out of range.
    """
    try:
        document: dict[str, object] = dict(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PolicyError(f"policy source is not valid TOML: {error}") from error
    valid_days = document.pop("valid_days", DEFAULT_VALID_DAYS)
    if type(valid_days) is not int or not 1 <= valid_days <= MAX_VALID_DAYS:
        raise PolicyError(f"policy key 'valid_days' is {valid_days!r}; allowed: 1 .. {MAX_VALID_DAYS}")
    for key in ("schema", "number", "issued", "expires"):
        if key in document:
            raise PolicyError(f"policy key '{key}' is worked out when signing; remove it from the source")
    document["schema"] = SCHEMA
    document["number"] = number
    document["issued"] = format_time(issued_utc_ns)
    document["expires"] = format_time(issued_utc_ns + valid_days * NS_PER_DAY)
    document.setdefault("reports", {})
    document.setdefault("rounds", {})
    return from_mapping(document)
