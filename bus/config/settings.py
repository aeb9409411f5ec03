"""The rig's settings: flags > ``RIGBUS_*`` > configuration files > defaults, and where each value came from.

Files, the strongest first: ``./rigbus.toml``, ``$XDG_CONFIG_HOME/rigbus/config.toml``, ``/etc/rigbus/config.toml``;
``--config FILE`` is the only one when given. Tables nest: ``retention.tasks`` is RIGBUS_RETENTION__TASKS.

It loads pydantic; verbs that only need folders use :func:`.paths.locate`, which reads the same keys of the same files.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from ..errors import ConfigError
from ..mounts import LOCAL_SETTLE_S, NETWORK_SETTLE_S
from ..paths import RigPaths, config_files, default_state, model_file, read_toml, rig_paths
from ..timing import LEASE_MAX_S, LEASE_MIN_S, longest_renewal_s, renewal_s
from ..wire import LEASE_S
from .alerts import Alerts
from .models import Card, Gpu, Model, Placement, Table, Thermal, problems, twice
from .notify import Notify
from .urls import shown_url

PREFIX: Final = "RIGBUS_"


class Retention(Table):
    """How much history the broker keeps; what still runs, or is waited for, always stays."""

    events: int = Field(default=2_000_000, ge=10_000, description="events of the numbered log")
    tasks: int = Field(default=200_000, ge=1_000, description="ended tasks")


class Limits(Table):
    """Bounds of the broker; past them it answers BUSY. They can be lowered below PROTOCOL §9, not raised."""

    live_tasks: int = Field(default=1_000_000, ge=1, le=1_000_000, description="tasks that have not ended")
    batch_tasks: int = Field(default=100_000, ge=1, le=100_000, description="tasks of one batch")
    sessions: int = Field(default=4_000, ge=10, le=100_000, description="sessions; workers get 1,000 more")
    facts: int = Field(default=300_000, ge=1_000, description="facts of the brain, pauses and tokens")
    peer_messages: int = Field(
        default=20_000, ge=100, description="messages that wait for one peer before it is cut off"
    )
    peer_mb: int = Field(default=64, ge=2, le=4096, description="MiB that wait for one peer before that")
    inflow_mb: int = Field(
        default=256,
        ge=32,
        le=65_536,
        description="MiB that connections may fill with messages that have not ended before they are cut off",
    )
    connections: int | None = Field(
        default=None,
        ge=64,
        le=1_000_000,
        description="connections to the broker, at most half of the files that it may open; 16384 when not set",
    )
    free_mb: int | None = Field(
        default=None,
        ge=0,
        description="free MiB of the state folder's disk below which no new tasks are taken; 512 (at most a twentieth of "
        "the disk) when not set",
    )
    ballast_mb: int | None = Field(
        default=None,
        ge=0,
        le=65_536,
        description="MiB kept so that results are recorded on a full disk; 64 (at most a fortieth of it) when not set",
    )


class Logs(Table):
    """Bounds of what tasks and processes write."""

    task_bytes: int = Field(
        default=64 << 20, ge=4096, description="log file of one attempt; the rest is counted only"
    )
    tail_bytes: int = Field(
        default=64 << 10, ge=256, le=64 << 10, description="end of the output in the task's result"
    )
    level: Literal["debug", "info", "warning", "error"] = "info"


class Bridge(Table):
    """What the bridge does in the shared folder."""

    reconcile_s: float = Field(
        default=10.0, gt=0, le=3600, description="how often the mirror is compared; a large one less often"
    )
    archive_after_s: float = Field(
        default=604_800.0, ge=60, description="ended tasks leave their lanes for tasks/archive after it"
    )
    archive_keep: int = Field(
        default=2000,
        ge=1,
        le=100_000,
        description="ended tasks that tasks/complete and tasks/failed keep each",
    )
    path_map: list[str] = Field(
        default_factory=list,
        description="FROM=TO: a folder as the Pi names it, and where it lies here (below plans/ of the share)",
    )

    @field_validator("path_map")
    @classmethod
    def _pairs(cls, value: list[str]) -> list[str]:
        for pair in value:
            source, sign, target = pair.partition("=")
            if not (sign and source.startswith("/") and target):
                raise ValueError(f"{pair[:80]!r} is not FROM=TO with an absolute FROM")
        return value


class Brain(Table):
    """What the brain may ask of a model."""

    infer_wait_s: float = Field(
        default=30.0,
        ge=0,
        le=3600,
        description="a plan waits so long for a model to say classes that a rule cannot; 0: never asked",
    )


class Escalation(Table):
    """When something that the rig cannot settle goes to the planner, and when to a person at once."""

    max_per_batch: int = Field(
        default=3, ge=0, le=1000, description="asked of one batch; of the rig as a whole in 24 h"
    )
    cooldown_s: float = Field(
        default=60.0, ge=0, le=86_400, description="rest after the last one of the same batch and cause"
    )
    per_day: int = Field(default=20, ge=0, le=1000, description="asked of all in 24 h; 0: people only")
    workers_after_s: float = Field(
        default=60.0,
        gt=0,
        le=86_400,
        description="no worker was in order for so long while work waits; in order again for so long ends it",
    )


class AgentSpec(Table):
    """An agent that ``up`` starts beside the workers: ``[[agents]]``."""

    spec: str = Field(description="module:Class")
    name: str | None = None
    count: int = Field(default=1, ge=1, le=100)
    slots: int = Field(default=1, ge=1, le=1000)


class Settings(BaseSettings):
    """Every setting with its default. Durations end in their unit. Use :func:`load`, which knows the order."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True, extra="forbid", frozen=True
    )

    state: Path = Field(
        default_factory=default_state, description="the rig's private folder, on a local disk"
    )
    shared: Path | None = Field(default=None, description="the shared folder; <state>/shared when not set")
    workers: int | None = Field(
        default=None, ge=0, le=256, description="workers of `up`; one per free GPU, else 2"
    )
    slots: int = Field(default=1, ge=1, le=1000, description="tasks that one worker runs at once")
    model: Path | None = Field(default=None, description="GGUF file that `up` serves as `generate`")
    models: dict[str, Model] = Field(default_factory=dict)
    gpus: dict[str, Gpu] = Field(default_factory=dict)
    worker_gpus: list[Card] | None = Field(
        default=None, description="the card of each worker; all that are not the brain's when not set"
    )
    brain_gpus: list[Card] | None = Field(
        default=None, description="the brain's cards; those of its model when not set"
    )
    share_gpus: bool = Field(
        default=False, description="two workers, or brain and worker, may be on one card"
    )
    thermal: Thermal = Field(default_factory=Thermal)
    placement: Placement = Field(default_factory=Placement)
    agents: list[AgentSpec] = Field(default_factory=list)
    durability: Literal["full", "normal"] = Field(
        default="full", description="full: safe after power loss; normal: after a crash"
    )
    lease_s: float = Field(
        default=LEASE_S,
        ge=LEASE_MIN_S,
        le=LEASE_MAX_S,
        description="a silent worker loses its tasks after it; heartbeats, suspicion and fence follow it",
    )
    renew_s: float | None = Field(
        None, gt=0, description="how often leases are renewed; lease_s / 5, at most 1, when not set"
    )
    kill_grace_s: float = Field(
        default=10.0,
        ge=0,
        le=600,
        description="between SIGTERM and SIGKILL of a command; an agent's class has its own",
    )
    settle_s: float | None = Field(
        None, ge=0, le=3600, description="rest of a drop; 3 local, 30 on a network mount"
    )
    env_pass: list[str] = Field(
        default_factory=list, description="environment variables that commands may see"
    )
    retention: Retention = Field(default_factory=Retention)
    limits: Limits = Field(default_factory=Limits)
    logs: Logs = Field(default_factory=Logs)
    bridge: Bridge = Field(default_factory=Bridge)
    brain: Brain = Field(default_factory=Brain)
    escalation: Escalation = Field(default_factory=Escalation)
    alerts: Alerts = Field(default_factory=Alerts)
    notify: Notify = Field(default_factory=Notify)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # load() has merged all sources in order; nothing may be added behind its back.
        return (init_settings,)

    @field_validator("renew_s")
    @classmethod
    def _often_enough(cls, value: float | None, info: ValidationInfo) -> float | None:
        lease_s = info.data.get("lease_s")  # not there when it is wrong itself
        if value is not None and lease_s is not None and value > (most := longest_renewal_s(lease_s)):
            raise ValueError(
                f"{value:g} is too seldom for lease_s = {lease_s:g}, a late answer would cost the lease; give at most "
                f"{most:g}, or leave it out ({renewal_s(lease_s):g} then)"
            )
        return value

    @property
    def paths(self) -> RigPaths:
        """The rig's folders."""
        return rig_paths(self.state, self.shared)

    @property
    def renewal_s(self) -> float:
        """Seconds between two RENEWs."""
        return self.renew_s if self.renew_s is not None else renewal_s(self.lease_s)

    def settling_s(self, *, network: bool) -> float:
        """How long a dropped folder must rest, for a share on a local or a network file system."""
        if self.settle_s is not None:
            return self.settle_s
        return NETWORK_SETTLE_S if network else LOCAL_SETTLE_S


@dataclass(frozen=True, slots=True)
class Row:
    """One setting for people."""

    name: str
    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and for each value that is no default where it came from (dotted name -> origin).

    ``warnings`` are what can be, but hardly was meant.
    """

    settings: Settings
    origins: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def show(self) -> list[Row]:
        """Every setting with its value and origin (``default`` when nobody set it), in the order of the model.

        For people: an address without the key that somebody may have written into it.
        """
        return [
            Row(name, _shown(name, value), _origin(self.origins, name))
            for name, value in _flat(self.settings.model_dump())
        ]


def _shown(name: str, value: Any) -> Any:
    return shown_url(value) if isinstance(value, str) and name.endswith(".url") else value


def _origin(origins: Mapping[str, str], name: str) -> str:
    """A list or table that was set as a whole answers for its parts."""
    while name:
        if name in origins:
            return origins[name]
        name = name.rpartition(".")[0]
    return "default"


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@dataclass(slots=True)
class _Source:
    """One layer: its values, and how it names a dotted key to people."""

    values: dict[str, Any]
    label: str
    folder: Path | None = None

    def name_of(self, key: str) -> str:
        if self.label == "environment":
            return PREFIX + key.upper().replace(".", "__")
        if self.label == "flags":
            return f"--{key.replace('_', '-')}"
        return f"{self.label}: {key}"

    def origin_of(self, key: str) -> str:
        return self.label if self.folder is not None else self.name_of(key)


def load(
    flags: Mapping[str, Any] | None = None, config: Path | None = None, cwd: Path | None = None
) -> Loaded:
    """Read all sources and check them together.

    Args:
        flags: what the command line gave; None values are left out.
        config: the only configuration file to read.
        cwd: where ``rigbus.toml`` is looked for.

    Raises:
        ConfigError: a file is missing or no TOML, a key is unknown, a value is wrong; the message names the place, the
            key and the fix.
    """
    if config is not None and not config.is_file():
        raise ConfigError(f"{config}: no such file; correct --config")
    sources = [_Source({k: v for k, v in (flags or {}).items() if v is not None}, "flags"), _environment()]
    for file in [config] if config is not None else config_files(os.environ, cwd):
        values = read_toml(file)
        if values is not None:
            sources.append(
                _Source(_anchored(values, file.absolute().parent), str(file), file.absolute().parent)
            )
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    by_key: dict[str, _Source] = {}
    for source in reversed(sources):
        _rename(source)
        _merge(merged, source.values)
        for key, _ in _flat(source.values):
            origins[key] = source.origin_of(key)
            by_key[key] = source
    try:
        settings = Settings(**merged)
    except ValidationError as e:
        raise ConfigError("; ".join(_complaint(error, by_key) for error in e.errors())) from None
    wrong = problems(
        settings.models,
        settings.gpus,
        settings.placement,
        settings.worker_gpus,
        settings.brain_gpus,
        share_gpus=settings.share_gpus,
    )
    said = [f"{_place(key, by_key)}: {what}" for key, what in wrong]
    if said:
        raise ConfigError("; ".join(said))
    return Loaded(settings, origins, tuple(twice(settings.models, settings.model)))


def _rename(source: _Source) -> None:
    """Keys that had another name before."""
    models = source.values.get("models")
    for name, model in models.items() if isinstance(models, dict) else ():
        if isinstance(model, dict) and "context" in model:
            if "ctx" in model:
                place = source.name_of(f"models.{name}.context")
                raise ConfigError(f"{place}: the former name of ctx, which is given too; drop it")
            model["ctx"] = model.pop("context")


def _environment() -> _Source:
    try:
        values = EnvSettingsSource(Settings)()
    except ValueError as e:
        raise ConfigError(
            f"{e}: write lists and tables as JSON, such as RIGBUS_ENV_PASS='[\"LANG\"]'"
        ) from None
    if os.environ.get("RIGBUS_MODEL") and model_file() is None:
        values.pop("model", None)  # in a command of a rig: the name of its worker's model
    return _Source(values, "environment")


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Values over those already there; tables are merged key by key."""
    for key, value in values.items():
        old = into.get(key)
        if isinstance(value, Mapping) and isinstance(old, dict):
            _merge(old, value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _anchored(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths in a file are relative to that file's folder."""
    for table in (values, *(m for m in _tables(values.get("models")))):
        for key in ("state", "shared", "model", "path", "api_key_file"):
            if isinstance(table.get(key), str) and table[key]:
                table[key] = str(folder / Path(table[key]).expanduser())
    return values


def _tables(value: Any) -> list[dict[str, Any]]:
    return [t for t in value.values() if isinstance(t, dict)] if isinstance(value, dict) else []


def _place(key: str, by_key: Mapping[str, _Source]) -> str:
    """A key as the source that set it, or a part of it, or the table around it names it."""
    source = by_key.get(key) or next((s for k, s in by_key.items() if k.startswith(f"{key}.")), None)
    parent = key.rpartition(".")[0]
    while source is None and parent:  # a list of tables was set as a whole: upwards
        source = by_key.get(parent) or next(
            (s for k, s in by_key.items() if k.startswith(f"{parent}.")), None
        )
        parent = parent.rpartition(".")[0]
    return source.name_of(key) if source is not None else key


def _complaint(error: Any, by_key: Mapping[str, _Source]) -> str:
    """One problem as: place, what, fix."""
    place = _place(".".join(str(part) for part in error["loc"]), by_key)
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        return f"{place}: unknown key; " + (
            f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        )
    if error["type"] == "missing":
        return f"{place}: is missing; add it"
    if error["type"] == "value_error":  # a rule of ours, which names the value and the fix itself
        return f"{place}: {error['ctx']['error']}"
    if error["type"] == "model_type" and error["loc"][0] in {"models", "gpus"}:
        return f"{place}: is no table; write [{error['loc'][0]}.NAME] and its keys below"
    return f"{place}: {error['msg'][0].lower()}{error['msg'][1:]}, not {error['input']!r:.80}"


def _known_keys(loc: tuple[Any, ...]) -> list[str]:
    """The keys of the table at ``loc``."""
    tables: dict[str, type[BaseModel]] = {
        "retention": Retention,
        "limits": Limits,
        "logs": Logs,
        "bridge": Bridge,
        "brain": Brain,
        "escalation": Escalation,
        "alerts": Alerts,
        "notify": Notify,
        "models": Model,
        "gpus": Gpu,
        "thermal": Thermal,
        "placement": Placement,
        "agents": AgentSpec,
    }
    table = tables.get(str(loc[0]), Settings) if loc else Settings
    return sorted(table.model_fields)
