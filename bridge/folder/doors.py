"""The inward doors beside the inbox: ``tasks/queue``, ``signals`` and answers to escalations, as the bridge runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ...bus.paths import RigPaths
from .control import signals
from .control.books import ControlBooks
from .control.signals import Signals
from .escalations import answers
from .escalations.answers import Answers
from .intake.journal import Journal
from .intake.taking import Taker
from .loop.clock import Clock
from .loop.flows import Flow, Flows
from .mirror.findings import Findings
from .queue import files as queue_files
from .queue.books import Books
from .queue.files import QueueFiles
from .queue.orders import Orders
from .share.port import FolderPort

NAMES: Final = (queue_files.NAME, queue_files.TENDING, signals.NAME, answers.NAME)
SETTLE_S: Final = 1.0  #: a plan that is as new as its order
PATIENCE_S: Final = 60.0  #: for a file of the queue that is no JSON (yet)


def books_of(paths: RigPaths) -> Books:
    """What is kept of the queue's files that are on their way."""
    return Books(paths.state / "doors/queue")


def control_of(paths: RigPaths) -> tuple[ControlBooks, Findings]:
    """What is kept of commands by edited files, and what the mirror tells their door."""
    books = ControlBooks(paths.state / "doors/control")
    return books, Findings(books.listing, books.keep)


def doors(
    port: FolderPort,
    flows: Flows,
    paths: RigPaths,
    clock: Clock,
    drawn: Callable[[str], bool],
    *,
    homes: set[str] | None = None,
    path_map: Sequence[str] = (),
    books: Books | None = None,
    patience_s: float = PATIENCE_S,
    doubt_s: float = queue_files.DOUBT_S,
) -> Mapping[str, Callable[[], Flow[None]]]:
    """Flow name -> what starts it. ``drawn``: whether the mirror keeps a file at a path; ``path_map``: the setting;
    ``homes``: as in :class:`.intake.taking.Taker`; ``books``: :func:`books_of`, where somebody else looks into them too."""
    books = books or books_of(paths)
    orders = Orders(
        books,
        Taker(paths, clock, books.journal, homes),
        paths,
        clock,
        path_map,
        min(SETTLE_S, patience_s / 6),
    )
    queue = QueueFiles(port, flows, orders, clock, drawn, patience_s=patience_s, doubt_s=doubt_s)
    signal = Signals(port, Journal(paths.state / "doors/signals"), clock, books.public_id)
    answer = Answers(port, Taker(paths, clock, Journal(paths.state / "doors/answers"), homes), paths, clock)
    return dict(zip(NAMES, (queue.run, queue.tend, signal.run, answer.run), strict=True))
