"""The batcher against a memory that checks every step: nothing is computed twice, forgotten, mixed up or without room."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rigbus.agents.models.engine.batching import COMPANY_S, FIRST_ROWS, MIN_ROWS, Batcher, Copy, Cut, Step


class Memory:
    """What llama.cpp would hold, by sequence. It refuses a step that makes no sense."""

    def __init__(self, sequences: int, cells: int, batch: int) -> None:
        self.held: dict[int, list[int]] = {seq: [] for seq in range(sequences)}
        self.cells, self.batch = cells, batch

    def take(self, step: Step) -> None:
        for change in step.memory:
            match change:
                case Cut(seq, start):
                    assert start <= len(self.held[seq])
                    del self.held[seq][start:]
                case Copy(seq, to, count):
                    assert not self.held[to]
                    assert count <= len(self.held[seq])
                    self.held[to] = self.held[seq][:count]
        assert len(step.rows) <= self.batch
        for row in step.rows:
            assert row.position == len(self.held[row.seq])
            self.held[row.seq].append(row.token)
        # A shared cell counts once for llama.cpp; here it counts for each, so this is the stricter bound.
        assert sum(map(len, self.held.values())) <= self.cells


class Run:
    """A batcher, its memory, and requests of which each generates ``number`` again and again."""

    def __init__(self, sequences: int = 4, cells: int = 200, batch: int = 16, *, reuse: bool = True) -> None:
        self.batcher = Batcher(sequences, cells, batch, reuse=reuse)
        self.memory = Memory(sequences, cells, batch)
        self.prompts: dict[int, list[int]] = {}
        self.limits: dict[int, int] = {}
        self.answers: dict[int, list[int]] = {}
        self.begun: list[int] = []
        self.ended: list[int] = []

    def ask(self, number: int, prompt: list[int], max_tokens: int, *, reuse: bool = True) -> None:
        self.prompts[number], self.limits[number], self.answers[number] = prompt, max_tokens, []
        self.batcher.ask(number, prompt, max_tokens, reuse=reuse)

    def step(self) -> Step:
        step = self.batcher.step()
        self.begun += step.begun
        self.memory.take(step)
        for row in step.rows:
            if not row.logits:
                continue
            # What the logits follow from is exactly this request's own text.
            assert self.memory.held[row.seq] == [*self.prompts[row.number], *self.answers[row.number]]
            self.answers[row.number].append(-row.number)
            room = self.batcher.took(row.number, -row.number)
            if not room or len(self.answers[row.number]) == self.limits[row.number]:
                self.end(row.number)
        return step

    def end(self, number: int) -> None:
        self.batcher.end(number)
        self.ended.append(number)

    def finish(self) -> None:
        for _ in range(10_000):
            if not self.step().rows:
                return
        raise AssertionError("it never ends")


def test_one_request_reads_its_prompt_in_pieces_and_then_generates() -> None:
    run = Run(batch=16)
    run.ask(1, list(range(40)), 3)
    assert [len(run.step().rows) for _ in range(6)] == [16, 16, 8, 1, 1, 0]
    assert run.ended == [1]
    assert run.answers[1] == [-1, -1, -1]


def test_a_request_joins_while_another_generates() -> None:
    run = Run()
    run.ask(1, [1, 2, 3], 20)
    run.step()
    run.ask(2, [4, 5], 20)
    step = run.step()
    assert step.begun == [2]
    assert [(row.number, row.logits) for row in step.rows] == [(1, True), (2, False), (2, True)]


def test_those_who_generate_are_not_held_up_by_a_long_prompt() -> None:
    run = Run(cells=2000, batch=512)
    run.ask(1, [1], 50)
    run.step()
    run.batcher.pace(1000)
    run.ask(2, list(range(1000)), 5)
    sizes = []
    while 2 not in run.ended:
        step = run.step()
        sizes.append(len(step.rows))
        assert any(row.number == 1 for row in step.rows)
    assert max(sizes) == 1 + 1000 * COMPANY_S


@pytest.mark.parametrize(("rows_per_s", "size"), [(None, FIRST_ROWS), (1, MIN_ROWS), (400, 100), (1e9, 300)])
def test_a_piece_of_a_prompt_is_as_long_as_its_time_allows(rows_per_s: float | None, size: int) -> None:
    run = Run(cells=2000, batch=300)
    if rows_per_s is not None:
        run.batcher.pace(rows_per_s)
    run.ask(1, list(range(1000)), 5)
    assert len(run.step().rows) == size


def test_the_first_that_waits_is_the_first_that_begins_however_long_it_is() -> None:
    run = Run(sequences=4, cells=100)
    run.ask(1, list(range(50)), 10)
    run.ask(2, list(range(100, 160)), 30)  # no room beside 1
    run.ask(3, [7], 2)  # would have room, and waits for 2
    run.step()
    assert run.batcher.waiting == [2, 3]
    run.finish()
    assert run.begun == [1, 2, 3]


def test_the_next_prompt_goes_on_from_what_the_last_one_left() -> None:
    run = Run()
    run.ask(1, [1, 2, 3, 4, 5], 2)
    run.finish()
    run.ask(2, [1, 2, 3, 9], 2)
    step = run.step()
    assert [row.token for row in step.rows] == [9]
    assert run.batcher.known(2) == 3


def test_a_prompt_that_is_known_as_a_whole_still_computes_its_last_token() -> None:
    run = Run()
    run.ask(1, [1, 2, 3], 5)
    run.finish()
    run.ask(2, [1, 2, 3], 5)
    assert [(row.token, row.logits) for row in run.step().rows] == [(3, True)]


def test_a_prefix_is_shared_with_one_that_still_runs() -> None:
    run = Run()
    run.ask(1, [1, 2, 3, 4], 50)
    run.step()
    run.ask(2, [1, 2, 3, 8, 9], 5)
    step = run.step()
    assert any(isinstance(change, Copy) for change in step.memory)
    assert [row.token for row in step.rows if row.number == 2] == [8, 9]


def test_without_reuse_the_whole_prompt_is_computed() -> None:
    run = Run()
    run.ask(1, [1, 2, 3], 2)
    run.finish()
    run.ask(2, [1, 2, 3], 2, reuse=False)
    assert [row.token for row in run.step().rows] == [1, 2, 3]


def test_a_request_without_reuse_leaves_what_is_kept_for_others() -> None:
    run = Run(sequences=3)
    run.ask(1, [1, 2, 3, 4], 2)
    run.finish()
    for number in (2, 3):
        run.ask(number, [1, 2, 9], 2, reuse=False)
        run.finish()
    run.ask(4, [1, 2, 3, 4, 5], 2)
    run.step()
    assert run.batcher.known(4) == 4


def test_a_step_is_short_where_somebody_outside_is_held_up() -> None:
    run = Run(cells=2000, batch=512)
    run.batcher.pace(1000)
    run.ask(1, list(range(1000)), 5)
    assert len(run.batcher.step(company=True).rows) == 1000 * COMPANY_S


def test_what_nobody_uses_makes_room_the_oldest_first() -> None:
    run = Run(sequences=3, cells=100, batch=100)
    for number, token in ((1, 10), (2, 20)):
        run.ask(number, [token] * 30, 1)
        run.finish()
    run.ask(3, [30] * 50, 10)
    run.step()
    assert sorted(map(len, run.memory.held.values())) == [0, 30, 50]
    assert [20] * 30 in run.memory.held.values()


def test_a_cancelled_request_frees_its_sequence_wherever_it_is() -> None:
    run = Run(sequences=1, cells=100)
    run.ask(1, list(range(60)), 10)
    run.ask(2, [1], 1)
    run.ask(3, [5], 1)
    run.step()
    run.end(2)  # it waits
    run.end(1)  # it reads its prompt
    run.end(99)
    run.finish()
    assert run.begun == [1, 3]


def test_what_was_forgotten_is_known_to_nobody() -> None:
    run = Run()
    run.ask(1, [1, 2, 3], 2)
    run.finish()
    run.batcher.forget()
    run.ask(2, [1, 2, 3], 2)
    assert len(run.step().rows) == 3


@pytest.mark.parametrize(("sequences", "cells", "batch"), [(0, 100, 10), (11, 100, 10), (1, 1, 10)])
def test_impossible_sizes_are_refused(sequences: int, cells: int, batch: int) -> None:
    with pytest.raises(ValueError, match="do not go together"):
        Batcher(sequences, cells, batch)


def test_impossible_requests_are_refused() -> None:
    batcher = Batcher(2, 10, 4)
    for tokens in ([], [1] * 10):
        with pytest.raises(ValueError, match="cells"):
            batcher.ask(1, tokens, 1)
    batcher.ask(1, [1], 1)
    with pytest.raises(ValueError, match="known already"):
        batcher.ask(1, [1], 1)


REQUEST = st.tuples(
    st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 30), st.booleans(), st.booleans()
)


@settings(max_examples=150, deadline=None)
@given(
    sequences=st.integers(1, 5),
    cells=st.integers(45, 120),
    batch=st.integers(5, 40),
    reuse=st.booleans(),
    requests=st.lists(REQUEST, max_size=25),
    data=st.data(),
)
def test_every_request_gets_its_own_text_and_ends(
    sequences: int,
    cells: int,
    batch: int,
    reuse: bool,
    requests: list[tuple[list[int], int, bool, bool]],
    data: st.DataObject,
) -> None:
    run = Run(sequences, cells, batch, reuse=reuse)
    cancelled = set()
    for number, (prompt, limit, again, cancel) in enumerate(requests):
        run.ask(number, prompt, limit, reuse=again)
        for _ in range(data.draw(st.integers(0, 4))):
            run.step()
        if cancel and number not in run.ended:
            run.end(number)
            cancelled.add(number)
    run.finish()
    assert sorted(run.ended) == list(range(len(requests)))
    assert run.begun == sorted(run.begun)
    for number, (prompt, limit, _, _) in enumerate(requests):
        if number not in cancelled:
            assert len(run.answers[number]) == min(limit, cells - len(prompt))
