"""The alive pipe, as a process of the rig holds it."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator

import pytest

from rigbus.bus.lifeline import ALIVE_S, ALIVE_VARIABLE, Alive, alive_fd


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    try:
        yield read, write
    finally:
        for fd in (read, write):
            try:
                os.close(fd)
            except OSError:
                pass  # the test closed it


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def heard(fd: int) -> int:
    try:
        return len(os.read(fd, 65536))
    except BlockingIOError:
        return 0


def test_a_loop_that_turns_gives_a_sign_a_second(pipe: tuple[int, int]) -> None:
    clock = Clock()
    alive = Alive(alive_fd({ALIVE_VARIABLE: str(pipe[1])}), clock)
    alive.say()
    alive.say()
    assert heard(pipe[0]) == 1
    clock.now += ALIVE_S - 0.01
    alive.say()
    assert heard(pipe[0]) == 0
    clock.now += 0.02
    alive.say()
    assert heard(pipe[0]) == 1


def test_a_pipe_that_nobody_empties_or_that_is_closed_never_holds_up_the_loop(pipe: tuple[int, int]) -> None:
    clock = Clock()
    alive = Alive(alive_fd({ALIVE_VARIABLE: str(pipe[1])}), clock)
    while select.select([], [pipe[1]], [], 0)[1]:
        os.write(pipe[1], bytes(4096))
    clock.now += 1
    alive.say()
    os.close(pipe[1])
    clock.now += 1
    alive.say()


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "2", "99999", "9999999999", "٣"])
def test_what_is_no_pipe_counts_as_none(text: str) -> None:
    assert alive_fd({ALIVE_VARIABLE: text}) is None
    Alive(None).say()


def test_only_the_main_thread_speaks_for_its_process(pipe: tuple[int, int]) -> None:
    found: list[int | None] = []
    thread = threading.Thread(target=lambda: found.append(alive_fd({ALIVE_VARIABLE: str(pipe[1])})))
    thread.start()
    thread.join(5)
    assert found == [None]


def test_it_is_not_passed_on_to_children(pipe: tuple[int, int]) -> None:
    os.set_inheritable(pipe[1], True)
    assert alive_fd({ALIVE_VARIABLE: str(pipe[1])}) == pipe[1]
    assert not os.get_inheritable(pipe[1])
