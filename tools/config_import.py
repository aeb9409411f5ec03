"""The earlier system's ``config.json``, of both its generations -> a ``rigbus.toml``. Pure: maps in, text out.

What has a counterpart is written, what has none is named with the reason, what is wrong with its field and the fix. Of several
files the first that says a thing is believed.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from .config_text import ModelEntry, key_of, plain, text_of, toml

MAX_BYTES: Final = 4 << 20
_FIELD: Final = 120  #: characters of a field's name in a note
_CARD: Final = re.compile(r"0|[1-9][0-9]{0,2}|GPU-[0-9A-Za-z-]{4,80}")
_WARN: Final = ("warn_c", "warning_c", "gpu_warn_c", "gpu_warning_c", "gpu_temp_warn_c", "gpu_temp_warning_c")
_CRITICAL: Final = ("critical_c", "crit_c", "gpu_crit_c", "gpu_critical_c", "gpu_temp_critical_c")
_ABOUT_HEAT: Final = ("thermal", "limits", "thresholds", "resource_limits")
_PLACEMENTS: Final = frozenset({"single_gpu", "split_gpu"})

#: Key, or its beginning -> why there is nothing to write for it.
_LEFT: Final = {
    "poll_interval": "nothing is polled: the broker tells",
    "heartbeat": "follows lease_s",
    "timeout": "a time limit belongs to a plan or a task: timeout_s",
    "worker_timeout": "a time limit belongs to a plan or a task: timeout_s",
    "max_retries": "belongs to a plan or a task: max_attempts",
    "retry": "belongs to a plan or a task: max_attempts",
    "permissions": "commands are not matched with a list; tasks run as the rig's user with an environment of their own",
    "ollama": "models are GGUF files that rigbus loads itself, or a url under [models.NAME]",
    "llama": "models are GGUF files that rigbus loads itself, or a url under [models.NAME]",
    "port": "workers have no ports; `rigbus gateway` serves one for all",
    "log": "logs lie in the state folder; [logs] bounds them",
    "network": "other machines join with `rigbus worker`",
    "cpu_agents": "other machines join with `rigbus worker`",
    "escalation": "the brain escalates by itself",
    "vram": "memory of a card is read from its driver; [gpus.N] vram_mb and reserve_mb say otherwise",
    "resource_cooldown": "[placement] heat_after_s, cool_after_s and min_hot_s have defaults of their own",
    "auto_default": "[placement] cool_after_s has a default of its own",
    "launch": "`rigbus up` supervises its processes",
    "docker": "models run in processes of rigbus",
    "container": "models run in processes of rigbus",
}
_BRAIN: Final = frozenset({"name", "host", "model", "gpus"})
_WORKER: Final = frozenset({"name", "model", "gpu", "id", "port", "classes"})
_KNOWN: Final = (
    *("shared_path", "brain", "workers", "gpus", "models", "initial_hot_workers", "max_hot_workers"),
    *_ABOUT_HEAT,
)


class Note(NamedTuple):
    """One thing that was found: in which file, at which field, and what becomes of it."""

    file: str
    field: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.field}: {self.what}"


@dataclass(slots=True)
class Imported:
    """What came of the files. With something ``wrong`` the text is not to be used."""

    toml: str = ""
    mapped: list[Note] = field(default_factory=list)
    left: list[Note] = field(default_factory=list)
    wrong: list[Note] = field(default_factory=list)


class _Import:
    def __init__(self) -> None:
        self.out = Imported()
        self.values: dict[str, Any] = {}
        self.placement: dict[str, int] = {}
        self.thermal: dict[str, float] = {}
        self.models: dict[str, ModelEntry] = {}
        self.brain_cards: list[str] | None = None
        self.workers: list[tuple[str, str, str | None]] = []  #: file and field, name, card
        self._from: str = ""

    # -- saying ----------------------------------------------------------------------------------------------

    def mapped(self, at: str, what: str) -> None:
        self.out.mapped.append(Note(self._from, at, what))

    def left(self, at: str, why: str) -> None:
        self.out.left.append(Note(self._from, at[:_FIELD], why))

    def wrong(self, at: str, what: str) -> None:
        self.out.wrong.append(Note(self._from, at[:_FIELD], what))

    def _set(self, table: dict[str, Any], key: str, value: Any, at: str, name: str) -> None:
        if key in table and table[key] != value:
            self.left(at, f"{name} is {toml(table[key])} already, by a file before this one")
            return
        table[key] = value
        self.mapped(at, f"{name} = {toml(value)}")

    # -- one file --------------------------------------------------------------------------------------------

    def file(self, name: str, folder: str, given: Any) -> None:
        self._from = name
        if not isinstance(given, Mapping):
            self.wrong("the file", 'is no JSON object; it begins with {"shared_path": …')
            return
        self._shared(given.get("shared_path"), folder)
        self._brain(given.get("brain"))
        for key, card in (("gpus", "id"), ("workers", "gpu")):
            self._workers(key, card, given.get(key))
        self._catalogue(given.get("models"))
        self._hot(given)
        for key in _ABOUT_HEAT:
            if key in given:
                self._heat(key, given[key])
        for key in given:
            if key not in _KNOWN:
                self._unknown(str(key), _KNOWN)

    def _unknown(self, at: str, known: Sequence[str]) -> None:
        key = at.rpartition(".")[2].lower()
        why = next((why for start, why in _LEFT.items() if key.startswith(start)), None)
        if why is None:
            near = difflib.get_close_matches(key, known, n=1)
            why = f"unknown; was {near[0]} meant?" if near else "unknown to rigbus, and not needed by it"
        self.left(at, why)

    def _shared(self, value: Any, folder: str) -> None:
        if value is None:
            return
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            self.wrong("shared_path", f"is {_short(value)}, no path; give the shared folder in full")
            return
        path = os.path.normpath(os.path.join(folder, os.path.expanduser(value)))
        if not os.path.isabs(value):
            self.left(
                "shared_path",
                f"{value!r} was taken from the file's own folder; correct `shared` if it is not that",
            )
        self._set(self.values, "shared", path, "shared_path", "shared")

    def _brain(self, value: Any) -> None:
        if value is None:
            return
        if not isinstance(value, Mapping):
            self.wrong("brain", f"is {_short(value)}, no object")
            return
        cards = value.get("gpus")
        if cards is not None:
            found = self._cards("brain.gpus", cards)
            if found is not None and self.brain_cards is None:
                self.brain_cards = found
                self.mapped("brain.gpus", f"brain_gpus = {toml(found)}")
        self._model("brain.model", value.get("model"), "brain")
        for key in value:
            if key not in _BRAIN:
                self._unknown(f"brain.{key}", sorted(_BRAIN))

    def _workers(self, key: str, card_key: str, value: Any) -> None:
        if value is None:
            return
        if not isinstance(value, list):
            self.wrong(key, f"is {_short(value)}, no list")
            return
        known = {name for _, name, _ in self.workers}
        for n, one in enumerate(value):
            at = f"{key}[{n}]"
            if not isinstance(one, Mapping):
                self.wrong(at, f"is {_short(one)}, no object")
                continue
            name = one.get("name")
            if not isinstance(name, str) or not name:
                self.wrong(f"{at}.name", f"is {_short(name)}, no name; give each worker one")
                continue
            card = one.get(card_key, one.get("gpu"))
            found = None if card in (None, -1, "") else self._cards(f"{at}.{card_key}", [card])
            if name not in known:
                self.workers.append((f"{self._from}: {at}", name, found[0] if found else None))
            self._model(f"{at}.model", one.get("model"), "worker")
            for other in one:
                if other not in _WORKER:
                    self._unknown(f"{at}.{other}", sorted(_WORKER))
        if value:
            self.left(f"{key}[].name", "workers are called worker-1, worker-2, …")
            if any(isinstance(one, Mapping) and "port" in one for one in value):
                self.left(f"{key}[].port", _LEFT["port"])

    def _cards(self, at: str, value: Any) -> list[str] | None:
        if not isinstance(value, list):
            self.wrong(at, f"is {_short(value)}, no list of cards: [0, 3]")
            return None
        out = []
        for one in value:
            text = str(one) if isinstance(one, int) and not isinstance(one, bool) else one
            if not isinstance(text, str) or not _CARD.fullmatch(text):
                self.wrong(at, f"{_short(one)} is no card; give its index as nvidia-smi counts: 0, 1, …")
                return None
            if text in out:
                self.wrong(at, f"card {text} is named twice; name each once")
                return None
            out.append(text)
        return out

    # -- models ----------------------------------------------------------------------------------------------

    def _model(self, at: str, value: Any, role: str) -> None:
        """A model that is named only: a file where it is one, else a hint of where to put its file."""
        if value is None or value == "":
            return
        if not isinstance(value, str):
            self.wrong(at, f"is {_short(value)}, no name of a model")
            return
        is_file = value.endswith(".gguf")
        name = plain(os.path.basename(value).removesuffix(".gguf") if is_file else value)
        known = self.models.get(name)
        if known is not None:
            known.role = "brain" if role == "brain" else known.role
            return
        self.models[name] = ModelEntry(name, value if is_file else None, role, was="" if is_file else value)
        if is_file:
            self.mapped(at, f"[models.{key_of(name)}] path = {toml(value)}")
        else:
            self.left(
                at, f"{value} is a name, and rigbus loads a file: put its GGUF into [models.{key_of(name)}]"
            )

    def _catalogue(self, value: Any) -> None:
        if value is None:
            return
        if not isinstance(value, list):
            self.wrong("models", f"is {_short(value)}, no list")
            return
        for n, one in enumerate(value):
            at = f"models[{n}]"
            id_ = one.get("id") if isinstance(one, Mapping) else None
            if not isinstance(one, Mapping) or not isinstance(id_, str) or not id_:
                self.wrong(f"{at}.id", f"is {_short(id_)}, no name of a model")
                continue
            name = plain(id_)
            model = self.models.setdefault(name, ModelEntry(name, was=id_))
            if name != id_:
                self.left(f"{at}.id", f"{id_} is called {name}: letters, digits and . _ - only")
            self._entry(at, one, model)

    def _entry(self, at: str, one: Mapping[str, Any], model: ModelEntry) -> None:
        path, tier, placement = one.get("gguf_path"), one.get("tier"), one.get("placement")
        if isinstance(path, str) and path and "\0" not in path:
            model.path, model.was = path, ""
            self.mapped(f"{at}.gguf_path", f"[models.{key_of(model.name)}] path = {toml(path)}")
        elif path is not None:
            self.wrong(f"{at}.gguf_path", f"is {_short(path)}, no path")
        if tier is not None:
            if isinstance(tier, int) and not isinstance(tier, bool) and 1 <= tier <= 100:
                model.tier = tier
                self.mapped(f"{at}.tier", f"[models.{key_of(model.name)}] tier = {tier}")
            else:
                self.wrong(f"{at}.tier", f"is {_short(tier)}; give a number from 1 to 100")
        if placement in _PLACEMENTS:
            model.placement = placement
        elif placement is not None:
            self.wrong(f"{at}.placement", f"is {_short(placement)}; one of {', '.join(sorted(_PLACEMENTS))}")
        self._split(at, one.get("split_groups"), model)
        for key in one:
            if key not in ("id", "gguf_path", "tier", "placement", "split_groups"):
                self._unknown(f"{at}.{key}", ["gguf_path", "tier", "placement", "split_groups"])

    def _split(self, at: str, groups: Any, model: ModelEntry) -> None:
        if not isinstance(groups, list) or not groups:
            return
        cards = {name: card for _, name, card in self.workers if card is not None}
        first = groups[0]
        members = first.get("members") if isinstance(first, Mapping) else None
        if not isinstance(members, list) or len(members) < 2:
            self.wrong(f"{at}.split_groups[0].members", f"is {_short(members)}; name two workers or more")
            return
        unknown = [str(one) for one in members if one not in cards]
        if unknown:
            self.wrong(
                f"{at}.split_groups[0].members", f"{unknown[0]!r} is no worker with a card in this file"
            )
            return
        model.split = [cards[one] for one in members]
        self.mapped(f"{at}.split_groups[0]", f"[models.{key_of(model.name)}] split = {toml(model.split)}")
        if len(groups) > 1:
            self.left(
                f"{at}.split_groups[1:]", "a model has one group of cards; give another one another name"
            )

    # -- numbers ---------------------------------------------------------------------------------------------

    def _hot(self, given: Mapping[str, Any]) -> None:
        for theirs, ours in (("initial_hot_workers", "hot_at_start"), ("max_hot_workers", "max_hot")):
            value = given.get(theirs)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 256:
                self.wrong(theirs, f"is {_short(value)}; give a number from 0 to 256")
            else:
                self._set(self.placement, ours, value, theirs, f"[placement] {ours}")

    def _heat(self, table: str, value: Any) -> None:
        if not isinstance(value, Mapping):
            self.wrong(table, f"is {_short(value)}, no object")
            return
        for key, number in value.items():
            ours = "warn_c" if key in _WARN else "critical_c" if key in _CRITICAL else ""
            if not ours:
                self._unknown(f"{table}.{key}", (*_WARN, *_CRITICAL))
            elif isinstance(number, bool) or not isinstance(number, (int, float)) or not 30 <= number <= 120:
                self.wrong(f"{table}.{key}", f"is {_short(number)}; give degrees from 30 to 120")
            else:
                self._set(self.thermal, ours, float(number), f"{table}.{key}", f"[thermal] {ours}")

    # -- the whole -------------------------------------------------------------------------------------------

    def finish(self) -> Imported:
        """Rules between fields, and the text."""
        brain = self.brain_cards or []
        taken: dict[str, str] = {}
        for at, name, card in self.workers:
            file, _, place = at.partition(": ")
            if card is None or card in brain:
                continue  # a card of the brain's, which some lists name too, is no worker's
            if card in taken:
                said = f"{taken[card]} and {name} are both on card {card}; give each one of its own"
                self.out.wrong.append(Note(file, place, said))
            taken.setdefault(card, name)
        for at, name, card in self.workers:
            if card is not None and card in brain and "workers[" in at:
                file, _, place = at.partition(": ")
                said = f"{name} is on card {card}, which is the brain's ({', '.join(brain)}); give it another"
                self.out.wrong.append(Note(file, place, said))
        warn, critical = self.thermal.get("warn_c", 83.0), self.thermal.get("critical_c", 90.0)
        if self.thermal and critical <= warn:
            self.out.wrong.append(
                Note(self._from, "thermal", f"critical ({critical:g}) is not above warn ({warn:g})")
            )
        hot, most = self.placement.get("hot_at_start", 0), self.placement.get("max_hot")
        if most is not None and hot > most:
            said = f"{hot} is more than max_hot_workers ({most}); lower one or raise the other"
            self.out.wrong.append(Note(self._from, "initial_hot_workers", said))
        cards = list(taken)
        if cards:
            self.values["worker_gpus"] = cards
            self.out.mapped.append(Note(self._from, "workers", f"worker_gpus = {toml(cards)}"))
        elif self.workers:
            self.values["workers"] = len(self.workers)
            self.out.mapped.append(Note(self._from, "workers", f"workers = {len(self.workers)}"))
        if self.brain_cards is not None:
            self.values["brain_gpus"] = self.brain_cards
        tables: dict[str, Mapping[str, Any]] = {"placement": self.placement, "thermal": self.thermal}
        self.out.toml = text_of(self.values, self.models.values(), self.brain_cards or [], tables)
        return self.out


def imported(files: Sequence[tuple[str, str, Any]]) -> Imported:
    """What comes of the files: (name, the absolute folder that it lies in, its JSON value), the most believed first."""
    work = _Import()
    for name, folder, value in files:
        work.file(name, folder, value)
    return work.finish()


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:60]}…"
