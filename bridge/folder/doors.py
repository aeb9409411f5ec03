"""The inward doors beside the inbox: ``tasks/queue`` and ``signals``, as the bridge runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ...bus.paths import RigPaths
from . import queue_files, signals
from .clock import Clock
from .flows import Flow, Flows
from .journal import Journal
from .port import FolderPort
from .queue_books import Books
from .queue_files import QueueFiles
from .queue_orders import Orders
from .signals import Signals
from .taking import Taker

NAMES: Final = (queue_files.NAME, queue_files.TENDING, signals.NAME)
SETTLE_S: Final = 1.0  #: a plan that is as new as its order
PATIENCE_S: Final = 60.0  #: for a file of the queue that is no JSON (yet)


def books_of(paths: RigPaths) -> Books:
    """What is kept of the queue's files that are on their way."""
    return Books(paths.state / "doors/queue")


def doors(
    port: FolderPort,
    flows: Flows,
    paths: RigPaths,
    clock: Clock,
    drawn: Callable[[str], bool],
    *,
    path_map: Sequence[str] = (),
    books: Books | None = None,
    patience_s: float = PATIENCE_S,
    doubt_s: float = queue_files.DOUBT_S,
) -> Mapping[str, Callable[[], Flow[None]]]:
    """Flow name -> what starts it. ``drawn``: whether the mirror keeps a file at a path; ``path_map``: the setting;
    ``books``: :func:`books_of`, where somebody else looks into them too."""
    books = books or books_of(paths)
    orders = Orders(
        books, Taker(paths, clock, books.journal), paths, clock, path_map, min(SETTLE_S, patience_s / 6)
    )
    queue = QueueFiles(port, flows, orders, clock, drawn, patience_s=patience_s, doubt_s=doubt_s)
    signal = Signals(port, Journal(paths.state / "doors/signals"), clock, books.public_id)
    return dict(zip(NAMES, (queue.run, queue.tend, signal.run), strict=True))
