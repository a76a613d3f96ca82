"""The stage of the demonstration: folders, principals, policies, and the processes that are started on it.

Every principal keeps its keys in a folder of its own, and everything is done through the same commands that a person
would type; nothing here reaches around them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from holdfast.clock import Clock
from holdfast.lifecycle import Stop
from holdfast_federation.demo.processes import POLL_S, Child, Children, DemoError, run_holdfast, run_holdfast_json

SITES = ("north", "south")
MODEL = "digits"
PURPOSE = "digit-recognition"
FOREIGN_PURPOSE = "vendor-benchmark"  # north allows it, south does not
TRUST_DOMAIN = "demo.holdfast.example"
READY_TIMEOUT_S = 60.0
WINDOW_S = "2"
CHECK_IN_S = "0.5"

POLICY = """\
site = "{site}"
valid_days = 30

[reports]
operational = true
data = true
minimum_rows = 100

[rounds]
purposes = {purposes}
handlers = ["train", "evaluate"]
unsigned_runs = false
minimum_cohort = 2
minimum_rows = 50
require_clip = true
"""


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the demonstration before and while it runs."""

    name: str
    site: str
    state: Path
    data: Path


class World:
    """The folders under `root`, and the acts of the people in the story."""

    def __init__(self, root: Path, children: Children, clock: Clock, devices_per_site: int) -> None:
        self.root = root
        self.children = children
        self.clock = clock
        self.coordinator = root / "coordinator"
        self.author = root / "author"
        self.approver = root / "approver"
        self.devices = tuple(
            Device(
                f"{site}-{number}", site, root / "devices" / f"{site}-{number}", root / "data" / f"{site}-{number}.npz"
            )
            for site in SITES
            for number in range(1, devices_per_site + 1)
        )
        self.addresses: dict[str, str] = {}
        self.listening: dict[str, str] = {}

    def site(self, name: str) -> Path:
        return self.root / "sites" / name

    @property
    def roots(self) -> list[str]:
        """The public keys of all principals, as `evidence verify --root` takes them."""
        keys = [f"author={self.author / 'author.pub'}", f"approver={self.approver / 'approver.pub'}"]
        keys += [f"site-{site}={self.site(site) / 'site.pub'}" for site in SITES]
        return [str(self.coordinator / "authority"), *keys]

    def make_principals(self) -> None:
        """Keys for the author, the approving person and each site, and the sites' first policies."""
        for folder in (self.root / "sites", self.root / "devices", self.root / "data"):
            folder.mkdir(parents=True, exist_ok=True)
        run_holdfast("key", "create", "author", str(self.author))
        run_holdfast("key", "create", "approver", str(self.approver))
        for site in SITES:
            run_holdfast("site", "init", str(self.site(site)), "--name", site)
            purposes = [PURPOSE, FOREIGN_PURPOSE] if site == SITES[0] else [PURPOSE]
            source = POLICY.format(site=site, purposes=json.dumps(purposes))
            (self.site(site) / "policy.toml").write_text(source, encoding="utf-8")
            run_holdfast("site", "sign-policy", str(self.site(site)))

    def start_coordinator(self) -> Child:
        """Make its state folder and run it on free ports."""
        site_keys = [part for site in SITES for part in ("--site-key", f"{site}={self.site(site) / 'site.pub'}")]
        run_holdfast(
            *("coordinator", "init", str(self.coordinator), "--trust-domain", TRUST_DOMAIN),
            *("--author-key", str(self.author / "author.pub"), "--approver-key", str(self.approver / "approver.pub")),
            *site_keys,
        )
        ready = self.root / "coordinator-ready.json"
        any_port = "127.0.0.1:0"
        child = self.children.start(
            "coordinator",
            [
                *("coordinator", "run", str(self.coordinator), "--ready-file", str(ready), "--check-in-s", CHECK_IN_S),
                *("--enrolment-listen", any_port, "--device-listen", any_port, "--page-listen", any_port),
            ],
        )
        addresses = self.children.wait_for_json(child, ready, READY_TIMEOUT_S)
        self.addresses = {name: str(address) for name, address in addresses.items()}
        return child

    def enrol(self, device: Device) -> None:
        """The operator makes a token; the site enrols its device with the keys it trusts."""
        made = run_holdfast_json(
            "coordinator", "token", str(self.coordinator), "--site", device.site, "--name", device.name
        )
        token = self.root / f"{device.name}.token"
        token.touch(mode=0o600)
        token.write_text(str(made["token"]), encoding="utf-8")
        run_holdfast(
            *("agent", "enrol", str(device.state), "--token-file", str(token), "--name", device.name),
            *("--site-key", str(self.site(device.site) / "site.pub")),
            *("--author-key", str(self.author / "author.pub"), "--approver-key", str(self.approver / "approver.pub")),
        )
        token.unlink()

    def start_agents(self) -> None:
        """Run every device, each with its own samples, and wait until all of them listen."""
        started = []
        for device in self.devices:
            arguments = [
                *("agent", "run", str(device.state), "--policy", str(self.site(device.site) / "policy-1.json")),
                *("--listen", "127.0.0.1:0", "--data", str(device.data)),
                *("--window-s", WINDOW_S, "--data-window-s", "5", "--check-in-interval-s", CHECK_IN_S),
            ]
            started.append((device, self.children.start(device.name, arguments, {"HOLDFAST_CONFIRM_AFTER_S": "2"})))
        for device, child in started:
            status = self.children.wait_for_json(child, device.state / "status.json", READY_TIMEOUT_S)
            self.listening[device.name] = str(status["listen"])

    def publish(self, bundle: Path) -> str:
        """Put a bundle into the registry; its digest."""
        added = run_holdfast_json("coordinator", "models", str(self.coordinator), "add", str(bundle))
        return str(added["digest"])

    def approve(self, subject: str) -> None:
        """A person signs a yes, and it is handed in."""
        document = self.root / f"approval-{subject[:12]}.json"
        run_holdfast("approve", subject, "--key", str(self.approver), "-o", str(document))
        run_holdfast("coordinator", "models", str(self.coordinator), "approve", str(document))

    def assign(self, version: str) -> None:
        """Tell every device to serve this version."""
        run_holdfast("coordinator", "models", str(self.coordinator), "assign", MODEL, version, "--all")

    def wait_until_served(self, digest: str, timeout_s: float) -> None:
        """Until every device says that it serves the bundle."""

        def lagging() -> list[str]:
            return [device.name for device in self.devices if self.served(device) != digest]

        self.wait_for(lambda: not lagging(), timeout_s, lambda: f"{', '.join(lagging())} did not serve {digest[:12]}")

    def served(self, device: Device) -> str:
        """The digest of what a device serves now, in its own words."""
        status: dict[str, dict[str, str]] = json.loads((device.state / "status.json").read_text(encoding="utf-8"))
        return status.get("models", {}).get(MODEL, "")

    def wait_for(self, condition: Callable[[], bool], timeout_s: float, complaint: Callable[[], str]) -> None:
        """Poll until `condition()` holds; then, or if a process ends, stop. Raises DemoError with `complaint()`."""
        pause, deadline_s = Stop(self.clock), self.clock.monotonic_s() + timeout_s
        while not condition():
            self.children.check()
            if self.clock.monotonic_s() > deadline_s:
                raise DemoError(f"after {timeout_s:g} s {complaint()}; the logs are in {self.root / 'logs'}")
            pause.wait(POLL_S * 4)
