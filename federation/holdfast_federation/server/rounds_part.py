"""The rooms for models and federated rounds, put together on the core: what a whole coordinator runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from holdfast.errors import SettingsError
from holdfast.lifecycle import Task
from holdfast_federation.admin.rounds_api import rounds_routes
from holdfast_federation.dashboard.view import RoundRow
from holdfast_federation.rounds.gate import Gate
from holdfast_federation.rounds.node_keys import node_key_pem
from holdfast_federation.rounds.runs import RunSpec
from holdfast_federation.rounds.schedule import read_schedule
from holdfast_federation.rounds.start import RunWish, start_run
from holdfast_federation.rounds.store import RunStore
from holdfast_federation.rounds.superlink import SuperLinkAddress, read_address
from holdfast_federation.rounds.supervisor import RoundSupervisor
from holdfast_federation.server.build import Core, Parts
from holdfast_federation.server.fleet_service import FleetParts
from holdfast_federation.server.models_part import open_models
from holdfast_federation.server.settings import split_address


def models_and_rounds(core: Core) -> Parts:
    """A coordinator with everything."""
    store = RunStore(core.database, core.ledger, core.clock)
    models = open_models(core, store.offered_bases)
    superlinks = {"": lambda: read_address(core.state.flower), **read_superlinks(core.settings.superlink)}
    gate = Gate(lambda device_id: _node_key(core, device_id), superlinks)
    schedule = read_schedule(core.settings.schedule)

    def start(wish: RunWish) -> RunSpec:
        return start_run(wish, store, core.devices, models.registry.container)

    def rows() -> Sequence[RoundRow]:
        return [_row(store, run.spec.run_id) for run in store.all()]

    supervisor = RoundSupervisor(core.state.path, core.ledger.origin, store, core.clock, schedule, start)
    return Parts(
        fleet=FleetParts(deliveries=models.rollout, offers=store, pieces=models.rollout, gate=gate),
        routes=(*models.routes, *rounds_routes(store, start)),
        models=models.rows,
        rounds=rows,
        tasks=(Task("rounds", supervisor.run),),
    )


def read_superlinks(tables: Sequence[object]) -> Mapping[str, Callable[[], SuperLinkAddress]]:
    """The `[[superlink]]` tables of the settings: a customer's own SuperLinks, by the name that devices use.

    Raises: SettingsError: a key is missing or unknown, or the certificate cannot be read.
    """
    found: dict[str, Callable[[], SuperLinkAddress]] = {}
    for number, table in enumerate(tables, start=1):
        where = f"[[superlink]] table {number}"
        if not isinstance(table, Mapping) or set(table) != {"name", "address", "certificate"}:
            raise SettingsError(f"{where} must have exactly the keys name, address and certificate")
        name, address, certificate = (str(table[key]) for key in ("name", "address", "certificate"))
        host, port = split_address(address, f"address in {where}")
        try:
            pem = Path(certificate).read_bytes()
        except OSError as error:
            raise SettingsError(f"certificate {certificate} in {where} cannot be read: {error.strerror}") from error
        known = SuperLinkAddress(host, port, pem)
        if not name or name in found:
            raise SettingsError(f"{where} needs a name of its own")
        found[name] = partial(_same, known)
    return found


def _same(address: SuperLinkAddress) -> SuperLinkAddress:
    return address


def _node_key(core: Core, device_id: str) -> str:
    device = core.devices.find(device_id)
    return "" if device is None or device.is_revoked else node_key_pem(device.flower_public_key)


def _row(store: RunStore, run_id: str) -> RoundRow:
    run = store.get(run_id)
    answers = [member.answer for member in store.members(run_id)]
    return RoundRow(
        run_id=run_id,
        model=run.spec.model,
        purpose=run.spec.purpose,
        round=run.round,
        rounds=run.spec.rounds,
        state=run.state,
        accepted=answers.count("accepted"),
        refused=answers.count("refused"),
        note=run.reason,
    )
