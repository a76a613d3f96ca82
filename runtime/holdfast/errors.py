"""Every error that Holdfast raises for somebody else's data, as one tree with stable codes.

    HoldfastError
    ├── UsageError           what the caller asked for cannot be done as asked
    │   ├── SettingsError    configuration: unknown key, wrong unit or range
    │   ├── MissingExtraError an optional dependency is not installed
    │   └── StateError       a state folder: missing, not writable, newer than this program
    ├── TrustError           a signature, key, certificate, chain or proof does not hold
    │   ├── EnrolmentError   token, pin or proof of possession refused
    │   ├── ChainError       a gap or a fork in a device's record chain
    │   └── EvidenceError    an evidence file does not hold
    ├── FormatError          bytes that are not what they claim to be
    │   ├── BundleError      a bundle or its manifest
    │   ├── SketchMismatchError sketches over different bins cannot be merged
    │   └── DatasetError     local samples break their declared contract
    ├── ModelError           a model cannot be loaded, or failed its trial
    │   ├── AutodiffError    no training step can be built
    │   ├── TrainingError    local training cannot go on
    │   └── TrialError       a new model hung, crashed or ate memory in its trial; says which
    ├── RequestError         one inference request
    │   ├── UnknownModelError
    │   │   ├── UnreadyModelError a version that is known here and not served
    │   │   └── VersionFormError the version that is asked for is no version number
    │   ├── InvalidTensorError
    │   ├── OverloadedError
    │   ├── DeadlineError
    │   ├── InferenceError   the model itself failed on inputs that fit its signature
    │   ├── UnsupportedError a part of the protocol that this server does not offer
    │   ├── StoppingError    the server is stopping; ask another one, or again in a moment
    │   ├── AbandonedError   the client left or cancelled before its answer
    │   ├── AccessError      the caller may not do this here
    │   │   └── UnauthenticatedError the caller did not show who it is
    │   ├── UnknownRegionError no shared memory region is registered under this name
    │   └── ConflictError    the name is taken by something else
    ├── PolicyError          the site's policy is missing, not valid, or says no
    ├── RoundError           an offer, an update or a run is refused
    │   ├── NodeRefusedError the SuperLink does not know this worker's node key, or it was revoked
    │   └── RunEndedError    the federated run is over
    └── LinkError            the coordinator cannot be reached, or refused a call
        └── RefusedCallError the coordinator answered and said no; the same call will be refused again

Rules: the message says what, expected, got, what to do; lower case, no full stop. `code` is stable and documented;
never reuse one. Our own bugs are RuntimeError or AssertionError and are not caught.
"""

from __future__ import annotations


class HoldfastError(Exception):
    """Base of all errors about somebody else's data. `code` is stable across releases."""

    code = "HF-000"


class UsageError(HoldfastError):
    code = "HF-USE-001"


class SettingsError(UsageError):
    code = "HF-USE-002"


class MissingExtraError(UsageError):
    code = "HF-USE-003"


class StateError(UsageError):
    code = "HF-USE-004"


class TrustError(HoldfastError):
    code = "HF-TRUST-001"


class EnrolmentError(TrustError):
    code = "HF-TRUST-002"


class ChainError(TrustError):
    code = "HF-TRUST-003"


class EvidenceError(TrustError):
    code = "HF-TRUST-004"


class FormatError(HoldfastError):
    code = "HF-FORMAT-001"


class BundleError(FormatError):
    code = "HF-FORMAT-002"


class SketchMismatchError(FormatError):
    code = "HF-FORMAT-003"


class DatasetError(FormatError):
    code = "HF-FORMAT-004"


class ModelError(HoldfastError):
    code = "HF-MODEL-001"


class AutodiffError(ModelError):
    code = "HF-MODEL-002"


class TrainingError(ModelError):
    code = "HF-MODEL-003"


class TrialError(ModelError):
    """`reason` is one of the constants in `inference/trial.py`."""

    code = "HF-MODEL-004"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RequestError(HoldfastError):
    code = "HF-REQUEST-001"
    about = ("", "")  # the model and version that were asked for, where the rest of the request could not be read


class UnknownModelError(RequestError):
    code = "HF-REQUEST-002"


class UnreadyModelError(UnknownModelError):
    code = "HF-REQUEST-014"


class VersionFormError(UnknownModelError):
    code = "HF-REQUEST-015"


class InvalidTensorError(RequestError):
    code = "HF-REQUEST-003"


class OverloadedError(RequestError):
    """`retry_after_s`: when the queue will have room again, as far as it can be told; None = not known."""

    code = "HF-REQUEST-004"

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(RequestError):
    code = "HF-REQUEST-005"


class InferenceError(RequestError):
    code = "HF-REQUEST-006"


class UnsupportedError(RequestError):
    code = "HF-REQUEST-007"


class StoppingError(RequestError):
    code = "HF-REQUEST-008"


class AccessError(RequestError):
    code = "HF-REQUEST-009"


class UnauthenticatedError(AccessError):
    code = "HF-REQUEST-010"


class UnknownRegionError(RequestError):
    code = "HF-REQUEST-011"


class ConflictError(RequestError):
    code = "HF-REQUEST-012"


class AbandonedError(RequestError):
    code = "HF-REQUEST-013"


class PolicyError(HoldfastError):
    code = "HF-POLICY-001"


class RoundError(HoldfastError):
    code = "HF-ROUND-001"


class NodeRefusedError(RoundError):
    code = "HF-ROUND-002"


class RunEndedError(RoundError):
    code = "HF-ROUND-003"


class LinkError(HoldfastError):
    code = "HF-LINK-001"


class RefusedCallError(LinkError):
    code = "HF-LINK-002"
