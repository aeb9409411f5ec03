"""How the demo looks: plain lines, and on a terminal a bar that moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO


class Bar(Protocol):
    """The progress of one batch, and lines above it."""

    def show(self, batch: dict[str, Any]) -> None: ...
    def line(self, text: str) -> None: ...


class View:
    """Writes to one stream; rich only where a person looks."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def line(self, text: str) -> None:
        """One line, as it is."""
        print(text, file=self.out, flush=True)

    def heading(self, text: str) -> None:
        """A heading, with air above it."""
        print(f"\n{text}", file=self.out, flush=True)

    @contextmanager
    def progress(self) -> Iterator[Bar]:
        """A bar for the time of the ``with``; off a terminal a line now and then."""
        if not self.out.isatty():
            yield PlainBar(self)
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(file=self.out)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[busy]}", markup=False),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console) as progress:
            yield RichBar(progress)


class PlainBar:
    """A line at each tenth."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._said = -1

    def show(self, batch: dict[str, Any]) -> None:
        """Say it when there is news."""
        tenth = int(batch["progress"] * 10)
        if batch["total"] and tenth != self._said:
            self._said = tenth
            self._view.line(f"  {batch['plan']}: {_ended(batch)} of {batch['total']} tasks, {_busy(batch)}")

    def line(self, text: str) -> None:
        """A line between."""
        self._view.line(text)


class RichBar:
    """A bar of rich."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._id: Any = None

    def show(self, batch: dict[str, Any]) -> None:
        """Move it."""
        if self._id is None:
            self._id = self._progress.add_task(str(batch["plan"]), total=1, busy="")
        self._progress.update(
            self._id, total=max(1, batch["total"]), completed=_ended(batch), busy=_busy(batch)
        )

    def line(self, text: str) -> None:
        """A line above it."""
        self._progress.console.print(text, markup=False, highlight=False)


def _ended(batch: dict[str, Any]) -> int:
    return sum(
        n
        for state, n in batch["tasks"].items()
        if state not in ("waiting", "ready", "leased", "review", "failed")
    )


def _busy(batch: dict[str, Any]) -> str:
    return f"{batch['tasks'].get('leased', 0)} with workers"
