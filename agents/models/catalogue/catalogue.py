"""The models that a rig may serve: what the configuration says of them, and what their files add.

Pure but for :meth:`Catalogue.probed`, which reads the headers. It says what could be loaded; what is loaded where is decided
by the placement, and a worker that loads a model finds all that it needs in its entry.

    catalogue = Catalogue.from_settings(settings_of(config)).probed(paths.state)
    catalogue.load_s(catalogue.entries["small"], "1")  # seconds over the link of card 1
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ....bus.errors import BadFrame, ConfigError
from ..gguf.vram import MIB
from .entries import SINGLE, SPLIT, Card, Entry, probed

__all__ = ["Card", "Catalogue", "Entry", "brain_cards"]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The models by name, in the order of the configuration. Empty where none is configured (and then false)."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    cards: Mapping[str, Card] = field(default_factory=dict)
    default: str | None = None

    def __bool__(self) -> bool:
        return bool(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Catalogue:
        """From the settings as plain data (``tools.common.settings_of``, or ``Settings.model_dump(mode="json")``).

        ``model`` (and so ``--model FILE``) is one model more, named by the file's stem, and the default; where a table has
        this file already, it is that one.

        Raises:
            ConfigError: the file of ``model`` has the name of another model.
        """
        models: Mapping[str, Mapping[str, Any]] = settings.get("models") or {}
        brain = brain_cards(settings.get("brain_gpus"), models)
        entries = {name: _entry(name, table, brain) for name, table in models.items()}
        default = (settings.get("placement") or {}).get("default_model")
        if settings.get("model"):
            file = str(Path(settings["model"]).absolute())
            same = next((e.name for e in entries.values() if e.path == file), None)
            default = same or Path(file).stem
            if same is None and default in entries:
                raise ConfigError(f"model {file}: [models.{default}] is another model; rename one of them")
            entries.setdefault(default, Entry(name=default, path=file))
        tables: Mapping[str, Mapping[str, Any]] = settings.get("gpus") or {}
        cards = {name: Card(name=name, **table) for name, table in tables.items()}
        return cls(entries, cards, default)

    def probed(self, state: Path | None = None) -> Catalogue:
        """With what the files say: sizes, memory, and what is wrong with a file. ``state``: where peaks are remembered.

        It reads the header of each file, some 30 ms each from a local disk.
        """
        return replace(self, entries={e.name: probed(e, state) if e.local else e for e in self})

    def also(self, entry: Entry) -> tuple[str, ...]:
        """The other names that mean this model and no other: its file's stem, its name at its server."""
        names = dict.fromkeys(_other_names(entry))
        taken = {name for e in self if e.name != entry.name for name in (e.name, *_other_names(e))}
        return tuple(name for name in names if name != entry.name and name not in taken)

    # -- what a load costs -----------------------------------------------------------------------------------

    def card(self, name: str) -> Card:
        """A card as configured; the defaults for one that is not."""
        return self.cards.get(name) or Card(name=name)

    def named_both_ways(self, uuids: Mapping[str, str]) -> Catalogue:
        """With each configured card under its index and its UUID. ``uuids``: index -> UUID (``agents.cards.card_uuids``)."""
        cards = dict(self.cards)
        for index, uuid in uuids.items():
            one = self.cards.get(index) or self.cards.get(uuid)
            if one is not None:
                cards[index], cards[uuid] = replace(one, name=index), replace(one, name=uuid)
        return replace(self, cards=cards)

    def load_s(self, entry: Entry, *cards: str) -> float:
        """Seconds that its bytes need to these cards: llama.cpp fills one card after the other.

        0 for a model behind a url, and where its size is not known.
        """
        on = cards or entry.split
        if not entry.local or not on:
            return 0.0
        shares = entry.shares() if len(entry.shares()) == len(on) else (1.0 / len(on),) * len(on)
        mb = entry.size_bytes / MIB
        return sum(mb * share / self.card(card).link_mb_per_s for card, share in zip(on, shares, strict=True))

    # -- over the bus ----------------------------------------------------------------------------------------

    def to_map(self) -> dict[str, Any]:
        """As plain data. A key of a server is not in it, only where it is kept."""
        return {
            "models": [entry.to_map() for entry in self],
            "cards": [asdict(card) for card in self.cards.values()],
            "default": self.default,
        }

    @classmethod
    def from_map(cls, value: Any) -> Catalogue:
        """The way back.

        Raises:
            BadFrame: it is no catalogue; what is wrong is named.
        """
        models, cards = (
            (value.get("models"), value.get("cards")) if isinstance(value, Mapping) else (None, None)
        )
        default = value.get("default") if isinstance(value, Mapping) else None
        if not isinstance(models, list | tuple) or not isinstance(cards, list | tuple):
            raise BadFrame("a catalogue is a map with the lists models and cards")
        if default is not None and not isinstance(default, str):
            raise BadFrame("a catalogue's default is a name")
        entries = [Entry.from_map(each) for each in models]
        known = [Card.from_map(each) for each in cards]
        return cls({e.name: e for e in entries}, {c.name: c for c in known}, default)


def brain_cards(given: Sequence[str] | None, models: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """The brain's cards: those given, else those that its model is split over. ``models`` are tables as plain data."""
    if given is not None:
        return tuple(given)
    return next((tuple(m["split"]) for m in models.values() if m["role"] == "brain" and m["split"]), ())


def _other_names(entry: Entry) -> Iterator[str]:
    if entry.path:
        yield Path(entry.path).stem
    if entry.remote_model:
        yield entry.remote_model


def _entry(name: str, table: Mapping[str, Any], brain: tuple[str, ...]) -> Entry:
    split = tuple(table["split"])
    if not split and table["role"] == "brain" and table["placement"] != SINGLE and len(brain) > 1:
        split = brain
    given = table["vram_mb"]
    plain = {f.name: table[f.name] for f in fields(Entry) if f.name in table}
    return Entry(
        **{
            **plain,
            "name": name,
            "remote_model": table["remote_model"] or (name if table["url"] else ""),
            "split": split if table["url"] is None else (),
            "tensor_split": tuple(table["tensor_split"]),
            "placement": table["placement"] or (SPLIT if split and table["url"] is None else SINGLE),
            "vram_mb": given or 0,
            "vram_source": "config" if given else "unknown",
        }
    )
