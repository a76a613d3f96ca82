"""The operator's routes for federated runs: start, list, show, stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from holdfast.errors import FormatError
from holdfast_federation.admin.app import AdminCall, AdminRoute, int_field, text_field
from holdfast_federation.rounds.runs import FINAL, RunSpec
from holdfast_federation.rounds.start import RunWish
from holdfast_federation.rounds.store import Run, RunStore


def rounds_routes(store: RunStore, start: Callable[[RunWish], RunSpec]) -> list[AdminRoute]:
    """Routes under /v1/rounds. `start` enters a run and returns what it will do."""

    def create(call: AdminCall) -> object:
        spec = start(_wish(call.json()))
        return {"run_id": spec.run_id, "devices": list(spec.devices), "base_digest": spec.base_digest}

    def listed(call: AdminCall) -> object:
        del call
        return {"runs": [_summary(run, store) for run in store.all()]}

    def show(call: AdminCall) -> object:
        run = store.get(call.path["run_id"])
        return {**_summary(run, store), **_details(run, store)}

    def stop(call: AdminCall) -> object:
        run = store.get(call.path["run_id"])
        if run.state not in FINAL:
            store.move(run.spec.run_id, "fail", reason="stopped by the operator")
        return {"run_id": run.spec.run_id, "state": store.get(run.spec.run_id).state}

    return [
        AdminRoute("POST", "/v1/rounds", create),
        AdminRoute("GET", "/v1/rounds", listed),
        AdminRoute("GET", "/v1/rounds/{run_id}", show),
        AdminRoute("POST", "/v1/rounds/{run_id}/stop", stop),
    ]


def _wish(body: Mapping[str, object]) -> RunWish:
    default = RunWish("", "")
    devices = body.get("devices", [])
    if not isinstance(devices, list) or not all(isinstance(each, str) for each in devices):
        raise FormatError("field 'devices' is not a list of device ids")
    return RunWish(
        model=text_field(body, "model"),
        purpose=text_field(body, "purpose"),
        base_digest=text_field(body, "base_digest", ""),
        devices=tuple(devices),
        rounds=int_field(body, "rounds", default.rounds),
        epochs=int_field(body, "epochs", default.epochs),
        batch=int_field(body, "batch", default.batch),
        learning_rate=_number(body, "learning_rate", default.learning_rate),
        clip_norm=_number(body, "clip_norm", default.clip_norm),
        quorum=int_field(body, "quorum", default.quorum),
        minimum_devices=int_field(body, "minimum_devices", default.minimum_devices),
        deadline_s=_number(body, "deadline_s", default.deadline_s),
        invite_s=_number(body, "invite_s", default.invite_s),
        codec=text_field(body, "codec", default.codec),
        seed=int_field(body, "seed", default.seed),
        proximal_mu=_number(body, "proximal_mu", 0.0) if "proximal_mu" in body else None,
        gradient_clip=_number(body, "gradient_clip", 0.0) if "gradient_clip" in body else None,
    )


def _number(body: Mapping[str, object], name: str, default: float) -> float:
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FormatError(f"field {name!r} is not a number")
    return float(value)


def _summary(run: Run, store: RunStore) -> dict[str, object]:
    answers = [member.answer for member in store.members(run.spec.run_id)]
    return {
        "run_id": run.spec.run_id,
        "model": run.spec.model,
        "purpose": run.spec.purpose,
        "state": run.state,
        "reason": run.reason,
        "round": run.round,
        "rounds": run.spec.rounds,
        "invited": len(answers),
        "accepted": answers.count("accepted"),
        "refused": answers.count("refused"),
        "base_digest": run.spec.base_digest,
        "candidate_digest": run.candidate_digest,
        "created_utc_ns": run.created_utc_ns,
    }


def _details(run: Run, store: RunStore) -> dict[str, object]:
    members = [
        {
            "device_id": member.device_id,
            "answer": member.answer,
            "reason_code": member.reason_code,
            "policy_rule": member.policy_rule,
        }
        for member in store.members(run.spec.run_id)
    ]
    parts = [
        {
            "round": part.round,
            "step": part.step,
            "device_id": part.device_id,
            "state": part.state,
            "reason_code": part.reason_code,
            "sample_count": part.sample_count,
            "norm": part.norm,
            "metrics": dict(part.metrics),
        }
        for part in store.parts(run.spec.run_id)
    ]
    return {"members": members, "parts": parts}
