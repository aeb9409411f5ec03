"""The models of the configuration: are their files what they should be, and do they fit where they are to go."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ...bus.config.urls import shown_url
from .findings import Finding

if TYPE_CHECKING:
    from ...agents.models.catalogue.entries import Entry
    from ...agents.models.gguf.vram import Estimate
    from ...agents.supervisor.cards import ModelSeat

GROUP: Final = "Models"
_LIBRARIES: Final = frozenset({".so", ".dylib", ".dll"})


@dataclass(frozen=True, slots=True)
class CardRoom:
    """A card as the driver or the configuration has it: its memory and what is kept free, in MB; 0: not known."""

    name: str
    vram_mb: int = 0
    reserve_mb: int = 0

    @property
    def room_mb(self) -> int:
        return max(0, self.vram_mb - self.reserve_mb)

    def room_for(self, entry: Entry) -> int:
        """MB that this model may take. What was measured has in it what the driver takes for itself."""
        return self.vram_mb if entry.vram_source == "measured" else self.room_mb


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A probed entry with the cards that it may go to (of a split one: all that it takes together).

    ``estimate`` is that of the cards; ``host_mb`` what it takes of the machine's memory without one. ``unknown``: the
    architecture of its file, where the installed llama.cpp does not know it.
    """

    entry: Entry
    estimate: Estimate | None = None
    host_mb: int = 0
    cards: Sequence[CardRoom] = ()
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class CatalogueFacts:
    """``warnings`` are those of the configuration; ``same`` pairs of names whose files are one by another path.

    ``cuda``: the installed llama.cpp can use a card; None without llama.cpp.
    """

    models: Sequence[ModelFacts] = ()
    warnings: Sequence[str] = ()
    same: Sequence[tuple[str, str]] = ()
    memory_mb: int = 0
    cuda: bool | None = None
    any_card: bool = False
    notes: Sequence[str] = field(default_factory=tuple)
    seats: Sequence[ModelSeat] = ()


def gather(
    settings: Mapping[str, Any], warnings: Sequence[str], state: Path, rows: Sequence[Sequence[str]]
) -> CatalogueFacts:
    """Reads the header of each file. ``rows`` are nvidia-smi's (see ``gpu.py``)."""
    from ...agents.models.catalogue.catalogue import Catalogue
    from ...agents.supervisor.cards import model_seats, seats
    from ...bus.errors import ConfigError

    present, uuids, memory = _driver(rows)
    try:
        catalogue = Catalogue.from_settings(settings).named_both_ways(uuids).probed(state)
    except ConfigError as e:
        return CatalogueFacts(warnings=[*warnings, str(e)])
    seated = seats(settings, present, uuids)
    theirs = [card for card in seated.workers if card] or present
    brains = seated.brain.split(",") if seated.brain else theirs
    models = []
    for entry in catalogue:
        names = entry.split or (brains if entry.role == "brain" else theirs)
        rooms = []
        for name in dict.fromkeys(names):
            card = catalogue.card(name)
            rooms.append(CardRoom(name, card.vram_mb or memory.get(name, 0), card.reserve_mb))
        models.append(_facts(entry, rooms))
    return CatalogueFacts(
        models,
        warnings,
        _same_files(catalogue),
        _memory_mb(),
        _cuda(),
        bool(rows),
        seated.notes,
        model_seats(settings, seated, uuids),
    )


def _driver(rows: Sequence[Sequence[str]]) -> tuple[list[str], dict[str, str], dict[str, int]]:
    """Indexes, index -> UUID, and name (index and UUID) -> MB."""
    uuids, memory = {}, {}
    for number, row in enumerate(rows):
        mb, uuid = (*row[4:], "", "")[:2]
        size = int(word) if (word := mb.partition(" ")[0]).isdigit() else 0
        memory[str(number)] = size
        if uuid.startswith("GPU-"):
            uuids[str(number)] = uuid
            memory[uuid] = size
    return [str(n) for n in range(len(rows))], uuids, memory


def _facts(entry: Entry, cards: Sequence[CardRoom]) -> ModelFacts:
    from ...agents.models.gguf.model import read_gguf
    from ...agents.models.gguf.vram import estimate_vram_mb

    if entry.path is None or entry.problem:
        return ModelFacts(entry, cards=cards)
    info = read_gguf(Path(entry.path))
    here = estimate_vram_mb(info, entry.ctx, entry.parallel, entry.gpu_layers)
    host = estimate_vram_mb(info, entry.ctx, entry.parallel, gpu=False)
    unknown = "" if knows(info.architecture) else info.architecture
    return ModelFacts(entry, here, host.total_mb, cards, unknown)


def _same_files(entries: Iterable[Entry]) -> list[tuple[str, str]]:
    """Names whose files are one, though their paths differ."""
    seen: dict[tuple[int, int], Entry] = {}
    same = []
    for entry in entries:
        if entry.path is None or entry.problem:
            continue
        info = os.stat(entry.path)
        other = seen.setdefault((info.st_dev, info.st_ino), entry)
        if other is not entry and os.path.abspath(other.path or "") != os.path.abspath(entry.path):
            same.append((other.name, entry.name))
    return same


def _memory_mb() -> int:
    """The machine's memory; 0 where it is not told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    except (ValueError, OSError):
        return 0


def _cuda() -> bool | None:
    """By the library's file: to load it would start the driver."""
    folder = _libraries()
    return None if folder is None else any(folder.glob("*ggml-cuda*"))


def knows(architecture: str, folder: Path | None = None) -> bool:
    """Whether the installed llama.cpp (or that of ``folder``) may know an architecture: its library has the name in it.

    True where there is none, or it cannot be read.
    """
    folder = folder or _libraries()
    name = architecture.encode("utf-8", "replace") + b"\0"
    try:
        found = (
            [library.read_bytes() for library in folder.glob("libllama.*") if library.suffix in _LIBRARIES]
            if folder
            else []
        )
    except OSError:
        return True
    return not found or any(name in data for data in found)


def _libraries() -> Path | None:
    """The folder of llama.cpp's libraries; None without llama-cpp-python."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "lib"


# -- judging -------------------------------------------------------------------------------------------------


def judge(facts: CatalogueFacts) -> Iterable[Finding]:
    """A finding a model, one for each file that has two names, and one where llama.cpp cannot use the cards."""
    if not facts.models and not facts.warnings:
        yield Finding(
            GROUP, "models", "info", "none configured: tasks of class llm wait for `up --model FILE.gguf`"
        )
    for model in facts.models:
        yield _judge_model(model, facts)
    yield from _crowded_out(facts)
    for warning in (*facts.warnings, *facts.notes):
        what, _, fix = warning.rpartition("; ")
        yield Finding(GROUP, "configuration", "warn", what or warning, fix or "correct rigbus.toml")
    for one, other in facts.same:
        said = f"{one} and {other} are one file by two paths: it may be loaded twice"
        yield Finding(GROUP, "same file", "warn", said, "drop one of them")
    if facts.any_card and facts.cuda is False and any(m.entry.local for m in facts.models):
        fix = "CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-cache-dir llama-cpp-python"
        yield Finding(
            GROUP, "llama cuda", "warn", "llama-cpp-python is built without CUDA: no card is used", fix
        )


def _crowded_out(facts: CatalogueFacts) -> Iterable[Finding]:
    """Models whose every card is one of a pinned model that is split over cards: they are never loaded."""
    here = [m.entry for m in facts.models if m.entry.local and m.entry.role == "worker"]
    for pinned in (e for e in here if e.pinned and e.split):
        taken = {card for seat in _seats_of(pinned, facts) for card in seat.cards.split(",")}
        for other in here:
            places = [set(seat.cards.split(",")) for seat in _seats_of(other, facts)]
            if other is not pinned and places and all(cards & taken for cards in places):
                said = (
                    f"it has no card beside {pinned.name}, which is pinned on cards {', '.join(pinned.split)}"
                )
                yield Finding(GROUP, other.name, "warn", said, f"leave {pinned.name} unpinned, or add a card")


def _seats_of(entry: Entry, facts: CatalogueFacts) -> list[ModelSeat]:
    """The model workers with cards that a worker's model may go to."""
    split = ",".join(entry.split)
    return [seat for seat in facts.seats if seat.role == "worker" and seat.cards and seat.split == split]


def _judge_model(model: ModelFacts, facts: CatalogueFacts) -> Finding:
    entry = model.entry
    if entry.url is not None:
        return _judge_url(entry, entry.url)
    if entry.problem or model.estimate is None:
        what, _, fix = entry.problem.rpartition("; ")
        return Finding(GROUP, entry.name, "fail", what or entry.problem, fix or "correct its path")
    if model.unknown:
        what = f"its architecture {model.unknown!r:.80} is none that the installed llama.cpp knows"
        return Finding(GROUP, entry.name, "fail", what, "update llama-cpp-python, or take another model")
    known = [card for card in model.cards if card.vram_mb]
    if not known:
        return _on_the_machine(model, facts.memory_mb)
    shares = entry.shares() if len(entry.split) > 1 else (1.0,) * len(model.cards)
    needs = {c.name: _need(model, share) for c, share in zip(model.cards, shares, strict=True)}
    short = [card for card in known if needs[card.name] > card.room_for(entry)]
    said = f"{entry.description}, {max(needs.values())} MB a card ({entry.vram_source}) for {model.estimate.ctx} tokens"
    if entry.split and entry.role == "worker":
        said += f"; on cards {', '.join(entry.split)} together, where no other model is then"
    if not short:
        return Finding(GROUP, entry.name, "ok", said)
    rooms = ", ".join(f"card {card.name} has room for {card.room_for(entry)} MB" for card in short)
    everywhere = len(short) == len(known) or len(entry.split) > 1
    return Finding(
        GROUP, entry.name, "fail" if everywhere else "warn", f"{said}; {rooms}", _fix(model, short)
    )


def _judge_url(entry: Entry, url: str) -> Finding:
    """The server itself is not asked."""
    shown = shown_url(url)
    said = f"behind {shown}, as {entry.remote_model}"
    if shown == url:
        return Finding(GROUP, entry.name, "ok", said)
    fix = "write scheme, host, port and path only; the key goes in api_key_env or api_key_file"
    return Finding(GROUP, entry.name, "fail", f"{said}: such a url is not used", fix)


def _need(model: ModelFacts, share: float) -> int:
    entry, guess = model.entry, model.estimate
    if guess is None or entry.vram_source in {"config", "measured"}:
        return round(entry.vram_mb * share)
    return guess.on_card_mb(share)


def _fix(model: ModelFacts, short: Sequence[CardRoom]) -> str:
    smaller = "a smaller quantization, fewer gpu_layers, or split = [two cards]"
    if model.estimate is None or len(model.entry.split) > 1 or model.entry.vram_source != "estimate":
        return smaller
    largest = model.estimate.largest_ctx(min(card.room_mb for card in short))
    return f"ctx = {largest}, or {smaller}" if largest else smaller


def _on_the_machine(model: ModelFacts, memory_mb: int) -> Finding:
    """No card whose memory is known."""
    entry, guess = model.entry, model.estimate
    said = f"{entry.description}, {model.host_mb} MB of this machine's memory"
    said += f" for {guess.ctx} tokens" if guess is not None else ""
    if memory_mb and model.host_mb > memory_mb:
        fix = "take a smaller model or a smaller ctx"
        return Finding(GROUP, entry.name, "fail", f"{said}, which has {memory_mb} MB", fix)
    return Finding(GROUP, entry.name, "ok", f"{said}; no card is known")
