"""The coordinator, put together: state folder in, running listeners out. Read `Coordinator.start` as a list.

`parts_of` is where rooms above the core come in (models, rollout, rounds): it is handed the `Core` and returns `Parts`.
Each part has a truthful default, so a coordinator without them still enrols, ingests and shows its fleet.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from holdfast.clock import Clock
from holdfast.errors import SettingsError
from holdfast.lifecycle import Task
from holdfast.trust.durable import write_atomic
from holdfast_federation.admin.app import AdminRoute, admin_app
from holdfast_federation.admin.routes import CoreRooms, core_routes
from holdfast_federation.dashboard.page import page_app
from holdfast_federation.dashboard.view import ModelRow, RoundRow, Sources, nothing
from holdfast_federation.database import Database
from holdfast_federation.devices import schema as devices_schema
from holdfast_federation.devices.records import Devices
from holdfast_federation.enrolment import schema as enrolment_schema
from holdfast_federation.enrolment.authority import CertificateAuthority
from holdfast_federation.enrolment.enrol import Enrolment, PublicKeys, Stores
from holdfast_federation.enrolment.tokens import Tokens
from holdfast_federation.events import schema as events_schema
from holdfast_federation.ingest import schema as ingest_schema
from holdfast_federation.ingest.accept import Ingest
from holdfast_federation.ingest.fleet import FleetView
from holdfast_federation.ledger import schema as ledger_schema
from holdfast_federation.ledger.log import Ledger
from holdfast_federation.registry import schema as registry_schema
from holdfast_federation.rollout import schema as rollout_schema
from holdfast_federation.rounds import schema as rounds_schema
from holdfast_federation.server.admission import Admission
from holdfast_federation.server.enrolment_service import enrolment_handler
from holdfast_federation.server.figures import CoreFigures
from holdfast_federation.server.fleet_service import FleetParts, FleetService
from holdfast_federation.server.listener import ENROLMENT_BOUNDS, FLEET_BOUNDS, ServerCertificate, start_listener
from holdfast_federation.server.settings import CoordinatorSettings, join_address, split_address
from holdfast_federation.server.state import Principals, StateFolder, clean_state, open_state
from holdfast_federation.server.web import WebServer, listen_tcp, listen_unix

logger = logging.getLogger(__name__)

# One schema per room that stores; a new room adds its own here.
SCHEMAS = (
    ledger_schema.SCHEMA,
    devices_schema.SCHEMA,
    events_schema.SCHEMA,
    enrolment_schema.SCHEMA,
    ingest_schema.SCHEMA,
    registry_schema.SCHEMA,
    rounds_schema.SCHEMA,
    rollout_schema.SCHEMA,
)
WILDCARD_HOSTS = ("0.0.0.0", "::")  # nobody can dial these
STOP_GRACE_S = 5.0  # for calls that are being answered
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, slots=True)
class Core:
    """The rooms that every coordinator has, for those that build on them."""

    state: StateFolder
    settings: CoordinatorSettings
    clock: Clock
    database: Database
    ledger: Ledger
    devices: Devices
    ingest: Ingest
    fleet: FleetView
    authority: CertificateAuthority
    principals: Principals


@dataclass(frozen=True, slots=True)
class Parts:
    """What other rooms add. `tasks` run until the coordinator stops; `close` is called after that, last first."""

    fleet: FleetParts = field(default_factory=FleetParts)
    routes: Sequence[AdminRoute] = ()
    models: Callable[[], Sequence[ModelRow]] = nothing
    rounds: Callable[[], Sequence[RoundRow]] = nothing
    tasks: Sequence[Task] = ()
    close: Sequence[Callable[[], None]] = ()


def no_parts(core: Core) -> Parts:
    """A coordinator that only enrols devices and takes their reports."""
    return Parts()


def open_core(state: StateFolder, settings: CoordinatorSettings, clock: Clock) -> Core:
    """Open the database and the keys of a state folder.

    Raises:
        StateError: not a state folder, not writable, or written by a newer version.
        TrustError: others on this machine could read its keys.
    """
    authority = CertificateAuthority.load(state.authority, clock)
    principals = state.principals()
    database = Database(state.database, SCHEMAS)
    ledger = Ledger(database, authority.key("ledger"), f"{authority.trust_domain}/ledger", clock)
    devices = Devices(database)
    return Core(
        state=state,
        settings=settings,
        clock=clock,
        database=database,
        ledger=ledger,
        devices=devices,
        ingest=Ingest(database, devices, ledger, clock),
        fleet=FleetView(database),
        authority=authority,
        principals=principals,
    )


class Coordinator:
    """One coordinator on one state folder."""

    def __init__(
        self,
        folder: Path,
        settings: CoordinatorSettings,
        clock: Clock,
        parts_of: Callable[[Core], Parts] = no_parts,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._clock = clock
        self._parts_of = parts_of
        self._stack = ExitStack()
        self._addresses: dict[str, str] = {}
        self.tasks: Sequence[Task] = ()

    @property
    def addresses(self) -> Mapping[str, str]:
        """enrolment and device as host:port to tell devices, page as a URL, admin as a path."""
        return dict(self._addresses)

    def start(self) -> None:
        """Return when every listener answers. `tasks` are then for the caller to run.

        Raises:
            StateError: the folder is not usable or another coordinator runs on it.
            SettingsError: an address cannot be listened on.
        """
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise

    def stop(self) -> None:
        """End calls that are being answered, a few seconds at most, and close everything."""
        self._stack.close()

    def write_ready_file(self, path: Path) -> None:
        """Tell another process where everything listens; the file appears at once and whole."""
        document = {**self._addresses, "pid": os.getpid()}
        write_atomic(path, json.dumps(document, sort_keys=True).encode())

    def _start(self) -> None:
        state = open_state(self._folder)
        self._stack.enter_context(state.locked())
        clean_state(state)
        core = open_core(state, self._settings, self._clock)
        self._stack.callback(core.database.close)
        parts = self._parts_of(core)
        for close in parts.close:
            self._stack.callback(close)
        self.tasks = parts.tasks
        tokens = Tokens(core.database, self._clock)
        certificate = ServerCertificate(core.authority, self._hosts(), self._clock)
        self._listen_for_devices(core, parts, certificate)
        self._listen_for_enrolment(core, tokens, certificate)
        self._serve_page(core, parts)
        self._serve_admin(core, parts, tokens)
        logger.info("coordinator is ready", extra={"addresses": self.addresses})

    def _listen_for_devices(self, core: Core, parts: Parts, certificate: ServerCertificate) -> None:
        admission = Admission(core.devices, core.authority.trust_domain, self._clock)
        service = FleetService(
            admission, core.devices, core.ingest, core.ledger, self._clock, self._settings.check_in_s
        )
        address = self._settings.device_listen
        server, port = start_listener(
            "device_listen", address, service.handler(parts.fleet), certificate, FLEET_BOUNDS, client_certificate=True
        )
        self._stack.callback(_stop_server, server)
        self._addresses["device"] = self._advertised(address, "device_listen", port)

    def _listen_for_enrolment(self, core: Core, tokens: Tokens, certificate: ServerCertificate) -> None:
        names = ("ledger", "run", "assignment")
        keys = PublicKeys(*(core.authority.key(name).public_key for name in names))
        enrolment = Enrolment(
            Stores(core.database, core.devices, tokens, core.ledger),
            core.authority,
            keys,
            lambda: self._addresses["device"],
            self._clock,
        )
        address = self._settings.enrolment_listen
        handler = enrolment_handler(enrolment, self._clock)
        server, port = start_listener(
            "enrolment_listen", address, handler, certificate, ENROLMENT_BOUNDS, client_certificate=False
        )
        self._stack.callback(_stop_server, server)
        self._addresses["enrolment"] = self._advertised(address, "enrolment_listen", port)

    def _serve_page(self, core: Core, parts: Parts) -> None:
        figures = CoreFigures(
            core.devices,
            core.fleet,
            core.ledger,
            self._clock,
            check_in_s=self._settings.check_in_s,
            window_s=self._settings.page_window_s,
        )
        sources = Sources(
            title=core.authority.trust_domain,
            now_utc_ns=self._clock.utc_ns,
            devices=figures.devices,
            served=figures.served,
            ledger=figures.ledger,
            refusals=figures.refusals,
            models=parts.models,
            rounds=parts.rounds,
        )
        listening = listen_tcp(self._settings.page_listen, "page_listen")
        host, port = listening.getsockname()[:2]
        hosts = [*LOOPBACK_NAMES, host] if host not in WILDCARD_HOSTS else ["*"]
        self._serve(WebServer("page", page_app(sources, hosts), listening, self._clock))
        self._addresses["page"] = f"http://{join_address(host, port)}/"

    def _serve_admin(self, core: Core, parts: Parts, tokens: Tokens) -> None:
        rooms = CoreRooms(
            database=core.database,
            devices=core.devices,
            tokens=tokens,
            ledger=core.ledger,
            fleet=core.fleet,
            authority=core.authority,
            sites=tuple(sorted(core.principals.sites)),
            addresses=lambda: self._addresses,
            clock=self._clock,
        )
        app = admin_app([*core_routes(rooms), *parts.routes])
        listening = listen_unix(core.state.admin_socket)
        self._stack.callback(core.state.admin_socket.unlink, missing_ok=True)
        self._serve(WebServer("admin", app, listening, self._clock))
        self._addresses["admin"] = str(core.state.admin_socket)

    def _serve(self, server: WebServer) -> None:
        self._stack.callback(server.stop)
        server.start()

    def _hosts(self) -> tuple[str, ...]:
        addresses = (self._settings.enrolment_listen, self._settings.device_listen)
        listened = [split_address(address, "listen")[0] for address in addresses]
        hosts = dict.fromkeys([self._settings.advertise_host, *listened])
        return tuple(host for host in hosts if host and host not in WILDCARD_HOSTS)

    def _advertised(self, address: str, name: str, port: int) -> str:
        host = self._settings.advertise_host or split_address(address, name)[0]
        if host in WILDCARD_HOSTS:
            raise SettingsError(f"setting '{name}' is {address!r}; set 'advertise_host' to the name that devices dial")
        return join_address(host, port)


def _stop_server(server: grpc.Server) -> None:
    server.stop(STOP_GRACE_S).wait(STOP_GRACE_S + 1.0)
