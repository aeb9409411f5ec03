"""Questions that may never be answered (a hung mount, a lost GPU), asked by children with a deadline.

A child that hangs in the kernel cannot be ended, so nobody waits for one. It is killed and left; one that makes something
(``tidies``) is only left: it goes on when the kernel lets go, removes what it made and ends by itself.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """How a child ended: ``code`` is None when it did not in time; ``out`` and ``err`` are what it wrote."""

    code: int | None
    out: str = ""
    err: str = ""

    @property
    def hung(self) -> bool:
        return self.code is None

    def object(self) -> dict[str, Any] | None:
        """The JSON object that it printed; None without one."""
        try:
            value = json.loads(self.out)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    def last_line(self) -> str:
        """The last line that it wrote, on stderr before stdout; at most 200 characters."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        return lines[-1][:200] if lines else f"it ended with {self.code}"


class Asked:
    """A child that has been started; its clock runs from now."""

    def __init__(self, argv: Sequence[str], timeout_s: float, *, tidies: bool = False) -> None:
        """
        Raises:
            OSError: it cannot be started.
        """
        self._until = monotonic() + timeout_s
        self._tidies = tidies
        self._popen = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def answer(self) -> Answer:
        """What it said; waits until its time is up and no longer."""
        try:
            out, err = self._popen.communicate(timeout=max(0.0, self._until - monotonic()))
        except subprocess.TimeoutExpired:
            for pipe in (self._popen.stdout, self._popen.stderr):
                if pipe is not None:
                    pipe.close()
            if not self._tidies:
                self._popen.kill()
                self._bury()
            return Answer(None)
        return Answer(self._popen.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))

    def _bury(self) -> None:
        try:
            self._popen.wait(0.2)
        except subprocess.TimeoutExpired:
            pass  # state D: it ends when the kernel lets go of it


def ask(argv: Sequence[str], timeout_s: float) -> Answer:
    """Start a child and wait for its answer."""
    try:
        return Asked(argv, timeout_s).answer()
    except OSError as e:
        return Answer(127, err=f"{argv[0]}: {e.strerror}")


def within(timeout_s: float, question: Callable[[], T]) -> T:
    """The answer of a function of ours that looks at folders; it is left alone in its thread when it hangs.

    Raises:
        TimeoutError: no answer in time. Otherwise what the function raises.
    """
    answers: list[T] = []
    faults: list[BaseException] = []

    def put() -> None:
        try:
            answers.append(question())
        except BaseException as e:  # it is raised again below, where the caller is
            faults.append(e)

    thread = threading.Thread(target=put, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if faults:
        raise faults[0]
    if not answers:
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    return answers[0]
