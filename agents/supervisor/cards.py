"""Which cards the processes of a rig are given. Pure but for :func:`present_cards` and :func:`card_uuids`.

An index counts as nvidia-smi does, by the order on the PCI bus. CUDA by itself counts the fastest card first, and every
index moves when a card falls off the bus: so a process is given UUIDs where they are known.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..models.catalogue.catalogue import Catalogue, brain_cards

DEFAULT_WORKERS: Final = 2  #: where there is no card
_DEVICES: Final = Path("/dev")
_DRIVER: Final = Path("/proc/driver/nvidia/gpus")
_NODE: Final = re.compile(r"nvidia(0|[1-9][0-9]{0,3})")
_MINOR: Final = re.compile(r"^Device Minor:\s*([0-9]{1,4})\s*$", re.MULTILINE)
_UUID: Final = re.compile(r"^GPU UUID:\s*(GPU-[0-9a-f-]{8,})\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Seats:
    """CUDA_VISIBLE_DEVICES of each worker and of the brain's: None leaves it as it is, "" shows no card.

    ``notes``: what people should hear of it.
    """

    workers: tuple[str | None, ...]
    brain: str | None = None
    notes: tuple[str, ...] = ()


def seats(
    settings: Mapping[str, Any], present: Sequence[str], uuids: Mapping[str, str] | None = None
) -> Seats:
    """The cards by ``workers``, ``worker_gpus``, ``brain_gpus`` and ``share_gpus`` of the settings.

    ``present``: the indexes of the cards that are here; ``uuids``: index -> UUID of those that are known.

    Without ``worker_gpus`` each card that is not the brain's has a worker. A worker beyond the cards has none, unless cards
    are shared.
    """
    known = dict(uuids or {})
    brain = brain_cards(settings["brain_gpus"], settings["models"])
    pairs = [card for split in worker_splits(settings["models"]) for card in split]
    named: Sequence[str] | None = settings["worker_gpus"]
    taken = {known.get(card, card) for card in brain}
    cards = list(named) if named is not None else [c for c in present if known.get(c, c) not in taken]
    count = settings["workers"]
    if count is None:
        count = len(cards) or DEFAULT_WORKERS
    places: list[str | None] = []
    for n in range(count):
        if n < len(cards) or (cards and settings["share_gpus"]):
            card = cards[n % len(cards)]
            places.append(known.get(card, card))
        else:
            places.append("" if present or named is not None else None)
    return Seats(
        tuple(places),
        ",".join(known.get(card, card) for card in brain) if brain else None,
        tuple(_notes(places, cards, [*cards[:count], *brain, *pairs], present, known)),
    )


@dataclass(frozen=True, slots=True)
class ModelSeat:
    """A model worker: CUDA_VISIBLE_DEVICES ("": as it is), the group of its link, and whose models it holds.

    ``split``: of one for split models the cards as the configuration names them, joined by commas; "" for any other.
    """

    name: str
    cards: str
    group: str
    role: str = "worker"
    split: str = ""


def model_seats(
    settings: Mapping[str, Any], seated: Seats, uuids: Mapping[str, str] | None = None
) -> list[ModelSeat]:
    """One for each card that has a worker, one for the cards of each split, and one for the brain's cards where a model is the
    brain's; none without models.

    Where there is no card: as many as ``[placement] seats``. Those of a split share their cards with the single ones: the
    brain sees to it that only one of them holds a model.
    """
    known = dict(uuids or {})
    catalogue = Catalogue.from_settings(settings).named_both_ways(known)
    if not catalogue:
        return []
    cards = list(dict.fromkeys(card for card in seated.workers if card))
    count = len(cards) or settings["placement"]["seats"]
    places = [*cards, *[""] * (count - len(cards))]
    found = [
        ModelSeat(f"model-{n}", card, catalogue.card(card).pcie_group) for n, card in enumerate(places, 1)
    ]
    for split in worker_splits(settings["models"]):
        group = catalogue.card(split[0]).pcie_group
        shown = ",".join(known.get(card, card) for card in split)
        found.append(ModelSeat(split_seat(split, known), shown, group, split=",".join(split)))
    if seated.brain and any(entry.role == "brain" for entry in catalogue):
        group = catalogue.card(seated.brain.split(",")[0]).pcie_group
        found.append(ModelSeat("model-brain", seated.brain, group, "brain"))
    return found


def worker_splits(models: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The cards of each split of a model that is not the brain's, once each. ``models`` are tables as plain data."""
    return list(
        dict.fromkeys(tuple(m["split"]) for m in models.values() if m["role"] == "worker" and m["split"])
    )


def split_seat(split: Sequence[str], uuids: Mapping[str, str] | None = None) -> str:
    """The name of the model worker of a split: ``model-cards-1-2``. ``uuids``: index -> UUID of those that are known."""
    indexes = {uuid: index for index, uuid in (uuids or {}).items()}
    words = [indexes.get(card, card.removeprefix("GPU-").removeprefix("MIG-")[:8]) for card in split]
    return "model-cards-" + "-".join(words)


def _notes(
    places: Sequence[str | None],
    cards: Sequence[str],
    used: Sequence[str],
    present: Sequence[str],
    known: Mapping[str, str],
) -> Iterator[str]:
    if len(places) > len(cards) > 0 and "" in places:
        last = f" to worker-{len(places)}" if len(places) > len(cards) + 1 else ""
        yield (
            f"{len(places)} workers on {len(cards)} cards: no card for worker-{len(cards) + 1}{last}; share_gpus = true "
            "lets several have one"
        )
    unknown = [card for card in dict.fromkeys(used) if card not in known and card not in known.values()]
    if len({card.isdigit() for card in unknown}) > 1:
        yield (
            f"cards {', '.join(unknown)} are named by index and by UUID, and the driver does not tell which are the same: a "
            "model could be loaded where another one is; name all in one way"
        )
    here = {*present, *known.values()}
    missing = [card for card in dict.fromkeys(used) if card not in here and (card.isdigit() or known)]
    if missing:
        there = f"there are {', '.join(present)}" if present else "there is none"
        yield f"card {', '.join(missing)} is not here ({there}); see `nvidia-smi -L`, correct worker_gpus or brain_gpus"


def present_cards(devices: Path = _DEVICES, driver: Path = _DRIVER) -> list[str]:
    """The indexes of the NVIDIA cards that this process may use; none elsewhere.

    They count from 0 whatever the nodes in /dev are called: so do CUDA and nvidia-smi in a container that has only some of
    the machine's cards.
    """
    return [str(index) for index in range(len(_visible(devices, driver)))]


def card_uuids(devices: Path = _DEVICES, driver: Path = _DRIVER) -> dict[str, str]:
    """Index -> UUID of those cards, as the driver's files have them; cards that it has not opened yet are left out."""
    return {str(index): uuid for index, uuid in enumerate(_visible(devices, driver)) if uuid}


def _visible(devices: Path, driver: Path) -> list[str]:
    """The UUID, or "", of each card that has a node in ``devices``, in the order of the bus.

    The number in a node's name is the card's *minor*, by the order in which the driver found it: no index. And in a
    container the driver's files may tell of every card of the machine. So a card is here if the node of its minor is.
    """
    try:
        nodes = {int(found[1]) for name in os.listdir(devices) if (found := _NODE.fullmatch(name))}
    except OSError:
        nodes = set()
    told = _driver_cards(driver)
    here = [uuid for minor, uuid in told if minor is None or minor in nodes]
    if not here or len(here) > len(nodes):
        return [""] * len(nodes)  # nothing says which of them is which
    return here


def _driver_cards(driver: Path) -> list[tuple[int | None, str]]:
    """Minor (None: not told) and UUID ("": not known yet) of each card that the driver drives, in the order of the bus."""
    try:
        folders = sorted(driver.iterdir(), key=lambda folder: folder.name)
    except OSError:
        return []
    cards: list[tuple[int | None, str]] = []
    for folder in folders:
        try:
            text = (folder / "information").read_text("ascii", "replace")
        except OSError:
            text = ""
        minor, uuid = _MINOR.search(text), _UUID.search(text)
        cards.append((int(minor[1]) if minor else None, uuid[1] if uuid else ""))
    return cards
