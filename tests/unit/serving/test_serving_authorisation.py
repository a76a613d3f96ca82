"""Who may do what: the table of decisions, and what a running server refuses over each of its sockets."""

from __future__ import annotations

import pytest

from holdfast.errors import AccessError, SettingsError, UnauthenticatedError, UsageError
from holdfast.serving.authorisation import (
    OPEN,
    Action,
    Caller,
    bearer_token,
    check_call,
    check_exposure,
    check_overrides,
    rules_of,
)

TOKEN = "correct-horse-battery-staple"
ID = "spiffe://example.org/client/7"
ANYBODY, LOCAL, ADMIN = Caller(), Caller(is_local=True), Caller(is_admin=True, is_local=True)
GUARDED = rules_of([ID], [TOKEN], model_control=True, shared_memory=True)
OFFERING = rules_of(model_control=True, shared_memory=True)


def allowed(rules: object, caller: Caller, action: Action) -> str:
    """ "yes", or the kind of refusal."""
    try:
        check_call(rules, caller, action)  # type: ignore[arg-type]  # AccessRules
    except UnauthenticatedError:
        return "who are you"
    except AccessError:
        return "no"
    return "yes"


@pytest.mark.parametrize("action", [Action.INFER, Action.READ])
def test_guarded_server_wants_an_id_or_a_token(action: Action) -> None:
    assert allowed(GUARDED, ANYBODY, action) == "who are you"
    assert allowed(GUARDED, LOCAL, action) == "who are you"
    assert allowed(GUARDED, Caller(token=TOKEN), action) == "yes"
    assert allowed(GUARDED, Caller(token=TOKEN[:-1]), action) == "who are you"
    assert allowed(GUARDED, Caller(token=TOKEN + "x" * 5_000), action) == "who are you"
    assert allowed(GUARDED, Caller(spiffe_id=ID), action) == "yes"
    assert allowed(GUARDED, Caller(spiffe_id=ID + "0"), action) == "who are you"
    assert allowed(rules_of([ID]), Caller(spiffe_id=ID + "0"), action) == "no"
    assert allowed(GUARDED, ADMIN, action) == "yes"
    assert allowed(OPEN, ANYBODY, action) == "yes"


def test_liveness_is_no_secret() -> None:
    assert allowed(GUARDED, ANYBODY, Action.HEALTH) == "yes"


@pytest.mark.parametrize("action", [Action.CONTROL_MODELS, Action.REGISTER_REGION])
def test_control_is_off_by_default_and_on_the_admin_socket_only(action: Action) -> None:
    assert allowed(OPEN, ADMIN, action) == "no"
    assert allowed(OFFERING, ADMIN, action) == "yes"
    assert allowed(OFFERING, LOCAL, action) == "no"
    assert allowed(GUARDED, Caller(token=TOKEN, spiffe_id=ID), action) == "no"


def test_shared_memory_is_used_from_this_machine_only() -> None:
    assert allowed(OFFERING, LOCAL, Action.USE_REGION) == "yes"
    assert allowed(OFFERING, ANYBODY, Action.USE_REGION) == "no"
    assert allowed(OPEN, LOCAL, Action.USE_REGION) == "no"


@pytest.mark.parametrize("key", ["config", "file:1/model.onnx", "file:"])
def test_overrides_are_always_refused(key: str) -> None:
    with pytest.raises(AccessError, match="never sent"):
        check_overrides(["harmless", key])


@pytest.mark.parametrize(
    ("rules", "is_loopback", "has_tls", "insecure", "text"),
    [
        (OPEN, True, False, False, ""),
        (OPEN, False, False, False, "neither encryption nor access control"),
        (OPEN, False, True, False, "anybody there could use it"),
        (OPEN, False, False, True, ""),
        (OPEN, False, True, True, ""),
        (rules_of(tokens=[TOKEN]), False, False, False, "neither encryption"),
        (rules_of(tokens=[TOKEN]), False, True, False, ""),
        (rules_of([ID]), False, True, False, ""),
        (rules_of([ID]), True, False, False, "needs TLS"),
        (rules_of([ID]), False, False, True, "needs TLS"),
    ],
)
def test_exposure(rules: object, is_loopback: bool, has_tls: bool, insecure: bool, text: str) -> None:
    def check() -> None:
        check_exposure(rules, "10.0.0.1:1", is_loopback=is_loopback, has_tls=has_tls, insecure=insecure)  # type: ignore[arg-type]

    if not text:
        check()
        return
    with pytest.raises(UsageError, match=text):
        check()


@pytest.mark.parametrize(
    "wrong", ["client/7", "spiffe://", "spiffe://example.org", "spiffe:///x", "https://example.org/x"]
)
def test_id_that_is_no_spiffe_id_is_refused(wrong: str) -> None:
    with pytest.raises(SettingsError, match="expected an allowed id"):
        rules_of([wrong])


@pytest.mark.parametrize("wrong", ["short", "x" * 5_000, "with a\nnewline in it", "ünïcode-token-token"])
def test_token_that_is_no_token_is_refused_without_being_told(wrong: str) -> None:
    with pytest.raises(SettingsError, match="expected a token of") as refused:
        rules_of(tokens=[wrong])

    assert wrong not in str(refused.value)


def test_rules_do_not_hold_the_token() -> None:
    assert TOKEN not in repr(GUARDED)


@pytest.mark.parametrize(
    ("header", "token"),
    [(f"Bearer {TOKEN}", TOKEN), (f"bearer  {TOKEN} ", TOKEN), ("Basic eDp5", ""), ("", ""), ("Bearer", "")],
)
def test_bearer_token_of_a_header(header: str, token: str) -> None:
    assert bearer_token(header) == token
