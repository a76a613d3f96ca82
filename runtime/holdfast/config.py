"""The settings of an agent: one frozen dataclass, filled from TOML < environment HOLDFAST_* < flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from holdfast.serving.settings import ServingSettings
from holdfast.settings import setting

LOG_LEVELS = ("debug", "info", "warning", "error", "DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What an operator may set; everything has a safe default."""

    listen: str = setting("127.0.0.1:8080", "HOST:PORT or unix:/PATH for clients of the models; port 0 = any")
    insecure: bool = setting(False, "allow a serving address that other machines can reach, without encryption")
    serving: ServingSettings = setting(  # noqa: RUF009  # frozen
        ServingSettings(), "how models are served, in a table [serving]: the settings of `ServingSettings`"
    )
    window_s: float = setting(60.0, "length of an operational window", minimum=0.1, maximum=86_400.0)
    data_window_s: float = setting(900.0, "least time between two data windows", minimum=0.1, maximum=604_800.0)
    check_in_interval_s: float = setting(
        30.0, "time between two check-ins, unless the coordinator asks for another", minimum=0.2, maximum=3_600.0
    )
    data: Path | None = setting(  # noqa: RUF009  # makes a field, like the others
        None, "local samples (npz, csv or a folder of them) for federated rounds; none = this device does not train"
    )
    p99_objective_ms: float = setting(
        0.0,
        "training pauses while the p99 of requests answered in the last 5 s is above this; 0 = it never does",
        minimum=0.0,
        maximum=3_600_000.0,
    )
    superlink: str = setting("", "name of a customer's own SuperLink at the coordinator; needs rounds.unsigned_runs")
    superlink_model: str = setting("", "the served model that apps of that SuperLink train")
    threads: int = setting(1, "threads inside one run of a model", minimum=1, maximum=1_024)
    spinning: bool = setting(False, "let idle threads spin: 6 to 17 times the CPU, rarely faster")
    trial_memory_mib: int = setting(2_048, "memory a new model may take in its trial", minimum=64, maximum=1_048_576)
    trial_timeout_s: float = setting(60.0, "time the trial of a new model may take", minimum=0.1, maximum=3_600.0)
    confirm_after_s: float = setting(
        10.0, "how long a new model must serve before it counts as healthy", minimum=0.0, maximum=86_400.0
    )
    journal_mib: int = setting(64, "disk for records that wait to be delivered", minimum=1, maximum=65_536)
    log_level: str = setting("info", "what goes into the log", choices=LOG_LEVELS)
