"""Which worker holds which model: the brain's decisions, without a rig."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rigbus.agents.brain.placements import view_of
from rigbus.agents.brain.placing import (
    LOAD,
    UNLOAD,
    Action,
    Ask,
    Chosen,
    Done,
    Entry,
    Failed,
    Keep,
    Place,
    Placing,
    Request,
    Seat,
    Settings,
    View,
    Want,
)

SMALL = Entry("small", {"path": "/m/small.gguf"}, load_s=4.0)
LARGE = Entry("large", {"path": "/m/large.gguf"}, tier=2, load_s=40.0)
LLM = Want("generate", "llm", frozenset(), 3, waits_s=5.0)
SCRIPT = Want("shell", "script", frozenset(), 2, waits_s=5.0)
QUIET = Settings(hot_at_start=0)


def core(*entries: Entry, settings: Settings = QUIET) -> Placing:
    found = {e.name: e for e in entries or (SMALL, LARGE)}
    return Placing(found, settings, next(iter(found)))


def cold(n: int = 1, group: str = "pcie-0", **more: Any) -> Seat:
    return Seat(f"model-{n}", group, Chosen(), **more)


def hot(n: int = 1, model: str = "small", group: str = "pcie-0", **more: Any) -> Seat:
    more.setdefault("since_s", 1000.0)
    return Seat(f"model-{n}", group, Chosen(1, model, "old"), 1, "hot", model, 1.0, **more)


def loading(n: int = 1, model: str = "small", ask: str = "a", group: str = "pcie-0") -> Seat:
    return Seat(f"model-{n}", group, Chosen(1, model, ask), 1, "loading", model, 0.5)


def failed(n: int = 1, model: str = "small", ask: str = "x", since_s: float = 5.0) -> Seat:
    chosen = Chosen(1, model, ask)
    return Seat(
        f"model-{n}", "pcie-0", chosen, 1, "failed", model, since_s=since_s, message="the card is full"
    )


def load(model: str = "small", worker: str = "", id_: str = "a", *, automatic: bool = False) -> Ask:
    return Ask(id_, "b", LOAD, model, worker, automatic)


def decide(
    placing: Placing,
    *seats: Seat,
    asks: tuple[Ask, ...] = (),
    wants: tuple[Want, ...] = (),
    now: float = 0.0,
) -> list[Action]:
    return placing.step(View(seats, asks, wants), now)


class TestAsks:
    def test_a_cold_worker_is_chosen_before_one_that_holds_another_model(self) -> None:
        (action,) = decide(core(), hot(1, "large"), cold(2), asks=(load(),))
        assert isinstance(action, Place)
        assert (action.seat.worker, action.model) == ("model-2", "small")

    def test_without_any_model_an_ask_hears_how_to_configure_one(self) -> None:
        (action,) = decide(Placing({}, QUIET, ""), cold(1), asks=(load(""),))
        assert isinstance(action, Failed)
        assert action.error.startswith(
            "no model is configured: rigbus up --model FILE.gguf, or [models.NAME]"
        )

    def test_the_longest_idle_model_gives_way(self) -> None:
        placing = core()
        one, two = hot(1, "large", leases=1), hot(2, "large")
        decide(placing, one, two, now=0.0)
        one = replace(one, leases=0)
        (action,) = decide(placing, one, two, asks=(load(),), now=50.0)
        assert isinstance(action, Place) and action.seat.worker == "model-2"

    def test_what_is_used_does_not_give_way(self) -> None:
        assert decide(core(), hot(1, "large", leases=1), asks=(load(),)) == []

    def test_what_a_person_names_gives_way_when_it_is_empty(self) -> None:
        (action,) = decide(core(), hot(1, "large", leases=1), asks=(load(worker="model-1"),))
        assert isinstance(action, Place), "the worker itself waits until nothing uses the model"

    def test_pinned_does_not_give_way(self) -> None:
        placing = core(SMALL, replace(LARGE, pinned=True))
        assert decide(placing, hot(1, "large"), asks=(load(),)) == []

    def test_one_load_at_a_time_in_a_group(self) -> None:
        seats = (loading(1, ask="x"), cold(2), cold(3, group="pcie-1"))
        asks = (load(id_="x"), load("large", "model-2", "y"), load("large", "model-3", "z"))
        actions = decide(core(), *seats, asks=asks)
        assert [(a.seat.worker, a.ask.id) for a in actions if isinstance(a, Place)] == [("model-3", "z")]

    def test_two_asks_of_one_moment_do_not_begin_two_loads(self) -> None:
        asks = (load("small", id_="x"), load("large", id_="y"))
        actions = decide(core(), cold(1), cold(2), asks=asks)
        assert [a.ask.id for a in actions if isinstance(a, Place)] == ["x"]

    def test_it_is_done_when_its_worker_says_hot(self) -> None:
        assert decide(core(), loading(), asks=(load(),)) == []
        ready = Seat("model-1", "pcie-0", Chosen(1, "small", "a"), 1, "hot", "small", 1.0)
        assert decide(core(), ready, asks=(load(),)) == [Done(load(), "small is hot on model-1")]

    def test_hot_of_an_older_decision_is_not_done(self) -> None:
        stale = Seat("model-1", "pcie-0", Chosen(2, "small", "a"), 1, "hot", "large", 1.0)
        assert decide(core(), stale, asks=(load(),)) == []

    def test_it_fails_with_what_the_worker_says(self) -> None:
        seat = Seat("model-1", "pcie-0", Chosen(1, "small", "a"), 1, "failed", "small", message="no GGUF")
        failed, keep = decide(core(), seat, asks=(load(),))
        assert isinstance(failed, Failed) and "no GGUF" in failed.error and "model-1" in failed.error
        assert keep == Keep(seat)
        (again,) = decide(core(), replace(seat, chosen=Chosen(1, "small")), asks=(load(),))
        assert isinstance(again, Place), "a retry of the same ask is tried"

    def test_one_fact_is_written_once_in_a_look(self) -> None:
        seat = Seat("model-1", "pcie-0", Chosen(1, "small", "a"), 1, "failed", "small")
        assert [type(a) for a in decide(core(), seat, asks=(load(), load("large", "model-1", "b")))] == [
            Failed,
            Keep,
        ]
        kept = hot(1)
        kept = replace(kept, chosen=replace(kept.chosen, taken_back=True))
        assert decide(core(), kept, asks=(load("large", "model-1", "b"),)) == [Keep(kept)]

    def test_what_is_there_already_is_done(self) -> None:
        (action,) = decide(core(), hot(1), asks=(load(),))
        assert isinstance(action, Done) and "already" in action.note

    def test_unknown_names_fail_with_those_that_are_known(self) -> None:
        model, worker = decide(core(), cold(), asks=(load("huge"), load(worker="model-9", id_="c")))
        assert isinstance(model, Failed) and "large, small" in model.error
        assert isinstance(worker, Failed) and "model-1" in worker.error

    def test_without_a_name_the_default_is_meant(self) -> None:
        (action,) = decide(core(), cold(), asks=(load(""),))
        assert isinstance(action, Place) and action.model == "small"

    def test_unload_takes_the_least_used(self) -> None:
        ask = Ask("u", "b", UNLOAD, "small")
        (action,) = decide(core(), hot(1, leases=2), hot(2), asks=(ask,))
        assert isinstance(action, Place) and (action.seat.worker, action.model) == ("model-2", None)

    def test_unload_of_what_nobody_holds_is_done(self) -> None:
        assert decide(core(), cold(), asks=(Ask("u", "b", UNLOAD, "small"),)) == [
            Done(Ask("u", "b", UNLOAD, "small"), "no worker holds it")
        ]

    def test_an_unload_of_nothing_is_refused(self) -> None:
        (action,) = decide(core(), hot(1), asks=(Ask("u", "b", UNLOAD),))
        assert isinstance(action, Failed) and "names a model or a worker" in action.error

    def test_a_load_that_fails_on_one_card_goes_on_to_a_free_one(self) -> None:
        placing = core()
        (keep,) = decide(placing, failed(1, ask="a"), cold(2), asks=(load(),))
        assert isinstance(keep, Keep)
        (place,) = decide(placing, failed(1, ask=""), cold(2), asks=(load(),))
        assert isinstance(place, Place) and (place.seat.worker, place.ask.id) == ("model-2", "a")
        ended, _ = decide(placing, failed(1, ask=""), failed(2, ask="a"), asks=(load(),))
        assert isinstance(ended, Failed) and "the card is full" in ended.error

    def test_a_load_on_a_worker_by_name_goes_to_no_other(self) -> None:
        ended, _ = decide(core(), failed(1, ask="a"), cold(2), asks=(load(worker="model-1"),))
        assert isinstance(ended, Failed)

    def test_a_card_with_room_is_taken_first(self) -> None:
        placing = core(replace(SMALL, vram_mb=3000))
        full, roomy = cold(1, cards=("a",), free_mb=(1000,)), cold(2, cards=("b",), free_mb=(3000,))
        silent = cold(3, cards=("c",))
        for seats, worker in (
            ((full, roomy), "model-2"),
            ((full, silent), "model-3"),
            ((silent, roomy), "model-3"),
            ((full,), "model-1"),
        ):
            (place,) = decide(placing, *seats, asks=(load(),))
            assert isinstance(place, Place) and place.seat.worker == worker

    def test_another_name_of_a_model_will_do(self) -> None:
        placing = core(Entry("small", {"path": "/m/qwen-7b.gguf", "also": ["qwen-7b"]}))
        (place,) = decide(placing, cold(), asks=(load("qwen-7b"),))
        assert isinstance(place, Place) and place.model == "small"
        want = replace(LLM, needs=frozenset({"model:qwen-7b"}))
        (request,) = decide(placing, cold(), wants=(want,))
        assert isinstance(request, Request) and request.model == "small"

    def test_a_draining_worker_gets_nothing(self) -> None:
        assert decide(core(), cold(1, willing=False), asks=(load(),)) == []

    def test_of_two_asks_that_name_one_worker_the_last_counts_and_the_other_ends(self) -> None:
        asks = (load("small", "model-1", "x"), load("large", "model-1", "y"))
        place, failed = decide(core(), loading(1, ask="x"), asks=asks)
        assert isinstance(place, Place) and (place.model, place.ask.id) == ("large", "y")
        assert isinstance(failed, Failed) and failed.ask.id == "x"
        assert decide(core(), loading(1, "large", ask="y"), asks=asks) == [], "and not the other way round"

    def test_automation_takes_no_worker_that_a_person_was_quicker_to_fill(self) -> None:
        (done,) = decide(
            core(), hot(1, "large"), asks=(load(worker="model-1", automatic=True),), wants=(LLM,)
        )
        assert isinstance(done, Done) and "is to hold large" in done.note


class TestAnUnloadEndsOlderLoads:
    """What a person has asked for last is what he wants."""

    @staticmethod
    def ended(seats: tuple[Seat, ...], *asks: Ask) -> list[str]:
        actions = decide(core(), *seats, asks=asks)
        return [a.ask.id for a in actions if isinstance(a, Failed)]

    @pytest.mark.parametrize(
        ("model", "worker", "ended"),
        [
            ("small", "", ["s", "s1"]),
            ("large", "", ["l"]),
            ("", "model-1", ["s1"]),
            ("", "model-2", []),
            ("small", "model-1", ["s", "s1"]),
            ("small", "model-2", ["s"]),
        ],
    )
    def test_of_its_model_or_worker(self, model: str, worker: str, ended: list[str]) -> None:
        busy = hot(1, "large", leases=1), hot(2, "large", leases=1)
        asks = load("small", "", "s"), load("large", "", "l"), load("small", "model-1", "s1")
        assert self.ended(busy, *asks, Ask("u", "b", UNLOAD, model, worker)) == ended

    def test_and_none_that_came_after_it(self) -> None:
        unload = Ask("u", "b", UNLOAD, "small")
        assert self.ended((hot(1, "large", leases=1),), unload, load("small")) == []

    def test_not_the_rigs_own(self) -> None:
        unload = Ask("u", "b", UNLOAD, "small", "", automatic=True)
        assert self.ended((hot(1, "large", leases=1),), load("small"), unload) == []

    def test_one_that_would_only_begin_goes_before_one_that_is_hot(self) -> None:
        seats = hot(1), loading(2, ask="a")
        _, place = decide(core(), *seats, asks=(load(), Ask("u", "b", UNLOAD, "small")))
        assert isinstance(place, Place) and (place.seat.worker, place.model) == ("model-2", None)
        (place,) = decide(core(), failed(1), hot(2), asks=(Ask("u", "b", UNLOAD, "small"),))
        assert isinstance(place, Place) and place.seat.worker == "model-2"

    def test_one_that_is_on_its_way_by_the_worker_where_it_is(self) -> None:
        unload = Ask("u", "b", UNLOAD, "", "model-1")
        over, place = decide(core(), loading(1, ask="a"), asks=(load(), unload))
        assert isinstance(over, Failed) and over.ask.id == "a"
        assert isinstance(place, Place) and (place.model, place.ask.id) == (None, "u")


class TestAFileThatCannotBeLoaded:
    bad = replace(LARGE, problem="model /m/large.gguf: it is a folder")

    def test_nothing_makes_room_for_it_and_the_ask_says_why(self) -> None:
        for worker in ("", "model-1"):
            (action,) = decide(core(SMALL, self.bad), hot(1), asks=(load("large", worker),))
            assert isinstance(action, Failed) and "it is a folder" in action.error

    def test_work_that_wants_it_heats_nothing_and_keeps_no_card(self) -> None:
        placing = core(SMALL, self.bad)
        want = replace(LLM, needs=frozenset({"model:large"}))
        assert decide(placing, cold(1), wants=(want,)) == []
        decide(placing, hot(1), wants=(SCRIPT, want), now=0.0)
        (request,) = decide(placing, hot(1), wants=(SCRIPT, want), now=100.0)
        assert isinstance(request, Request) and request.op == UNLOAD

    def test_another_model_that_will_do_is_taken_instead(self) -> None:
        placing = Placing({e.name: e for e in (SMALL, self.bad)}, QUIET, "large")
        (request,) = decide(placing, cold(1), wants=(LLM,))
        assert isinstance(request, Request) and request.model == "small"

    def test_its_file_is_looked_at_before_an_ask_is_refused(self) -> None:
        placing = core(SMALL, self.bad)
        placing.looked_at = 5.0
        assert decide(placing, hot(1), asks=(load("large"),), now=6.0) == []
        placing.looked_at = 6.5
        (action,) = decide(placing, hot(1), asks=(load("large"),), now=7.0)
        assert isinstance(action, Failed)
        placing.catalogue = {"small": SMALL, "large": LARGE}
        (place,) = decide(placing, cold(1), asks=(load("large"),), now=8.0)
        assert isinstance(place, Place), "it was repaired"

    def test_one_that_is_hot_all_the_same_stays_and_is_there(self) -> None:
        changed = replace(self.bad, spec={"path": "/other"})
        placing = core(SMALL, changed)
        seat = replace(hot(1, "large"), chosen=Chosen(1, "large", "old", {"path": "/m/large.gguf"}))
        assert decide(placing, seat) == []
        (done,) = decide(core(SMALL, self.bad), hot(1, "large"), asks=(load("large"),))
        assert isinstance(done, Done)

    def test_it_is_not_loaded_at_the_start(self) -> None:
        bad = replace(SMALL, problem="gone", pinned=True)
        placing = core(bad, settings=Settings(hot_at_start=1))
        assert decide(placing, cold(1)) == []


class TestStart:
    def test_as_many_as_the_settings_say_are_hot_at_start(self) -> None:
        placing = core(settings=Settings(hot_at_start=1))
        (first,) = decide(placing, cold(1), cold(2))
        assert first == Request(LOAD, "small", "model-1", "hot at start")
        assert decide(placing, hot(1), cold(2)) == []

    def test_one_that_could_not_load_it_does_not_count(self) -> None:
        placing = core(settings=Settings(hot_at_start=1))
        (request,) = decide(placing, failed(1), cold(2))
        assert isinstance(request, Request) and request.worker == "model-2"

    def test_a_rig_that_was_told_otherwise_is_left_alone(self) -> None:
        emptied = Seat("model-1", "pcie-0", Chosen(2, None, "u"), 2)
        assert decide(core(settings=Settings(hot_at_start=1)), emptied) == []

    def test_the_brains_model_goes_to_the_brains_cards(self) -> None:
        brain = Entry("judge", {}, tier=3, role="brain")
        placing = core(SMALL, brain)
        (action,) = decide(placing, cold(1), cold(2, role="brain"))
        assert isinstance(action, Request) and (action.model, action.worker) == ("judge", "model-2")


class TestHeat:
    def test_work_that_waits_heats_a_cold_worker(self) -> None:
        (action,) = decide(core(), cold(1), wants=(LLM,))
        assert isinstance(action, Request) and (action.op, action.model) == (LOAD, "small")

    def test_not_for_what_came_just_now(self) -> None:
        assert decide(core(), cold(1), wants=(replace(LLM, waits_s=0.2),)) == []

    def test_a_second_worker_is_heated_while_work_still_waits(self) -> None:
        (action,) = decide(core(), hot(1, leases=8), cold(2), wants=(LLM,))
        assert isinstance(action, Request) and action.worker == "model-2"

    def test_not_more_than_allowed(self) -> None:
        placing = core(settings=Settings(hot_at_start=0, max_hot=1))
        assert decide(placing, hot(1, leases=8), cold(2), wants=(LLM,)) == []

    def test_one_request_at_a_time(self) -> None:
        mine = load(worker="model-1", automatic=True)
        actions = decide(core(), cold(1), cold(2), asks=(mine,), wants=(LLM,))
        assert not any(isinstance(a, Request) for a in actions)

    def test_the_model_that_the_work_needs(self) -> None:
        want = replace(LLM, needs=frozenset({"tier:2"}))
        (action,) = decide(core(), hot(1), cold(2), wants=(want,))
        assert isinstance(action, Request) and action.model == "large"

    def test_another_model_gives_way_for_it_when_it_is_idle(self) -> None:
        placing = core()
        want = replace(LLM, needs=frozenset({"model:large"}))
        (action,) = decide(placing, hot(1), wants=(want,))
        assert isinstance(action, Request) and (action.model, action.worker) == ("large", "")
        asks = (load("large", automatic=True),)
        assert decide(placing, hot(1, since_s=5.0), asks=asks, wants=(want,)) == [], "no thrash"
        (place,) = decide(placing, hot(1), asks=asks, wants=(want,))
        assert isinstance(place, Place) and place.model == "large"

    def test_what_everything_pinned_leaves_no_card_for_is_not_asked_for(self) -> None:
        placing = core(SMALL, replace(LARGE, pinned=True))
        want = replace(LLM, needs=frozenset({"model:small"}))
        assert decide(placing, hot(1, "large"), wants=(want,)) == []

    def test_an_ask_that_nobody_needs_any_more_ends(self) -> None:
        (action,) = decide(core(), hot(1, leases=1), asks=(load("large", automatic=True),))
        assert isinstance(action, Done)

    def test_a_model_that_cannot_be_loaded_is_not_tried_over_and_over_on_one_worker(self) -> None:
        broken = failed(1)
        assert decide(core(SMALL), broken, wants=(LLM,)) == []
        later = replace(broken, since_s=1000.0)
        (action,) = decide(core(SMALL), later, wants=(LLM,))
        assert isinstance(action, Request)

    def test_a_model_that_one_card_has_no_room_for_is_tried_on_the_next_free_one_at_once(self) -> None:
        (action,) = decide(core(SMALL), failed(1), cold(2), wants=(LLM,))
        assert isinstance(action, Request) and action.worker == "model-2"
        assert decide(core(SMALL), failed(1), failed(2), wants=(LLM,)) == []

    def test_nothing_that_works_is_lost_for_a_model_that_has_just_failed(self) -> None:
        want = replace(LLM, needs=frozenset({"model:large"}))
        assert decide(core(), failed(1, "large"), hot(2), wants=(want,)) == []
        asks = (load("large", automatic=True),)
        assert decide(core(), failed(1, "large"), hot(2), asks=(), wants=(want,)) == []
        (place,) = decide(core(), failed(1, "large", since_s=400.0), hot(2), asks=asks, wants=(want,))
        assert isinstance(place, Place) and place.seat.worker == "model-1", (
            "a failed one goes before a hot one"
        )

    def test_work_that_no_model_of_the_catalogue_can_do_heats_nothing(self) -> None:
        assert decide(core(), cold(1), wants=(replace(LLM, needs=frozenset({"model:gone"})),)) == []


class TestCool:
    def idle(self, placing: Placing, seat: Seat, *wants: Want, for_s: float = 100.0) -> list[Action]:
        decide(placing, seat, wants=wants, now=0.0)
        return decide(placing, seat, wants=wants, now=for_s)

    def test_an_idle_model_makes_room_for_commands(self) -> None:
        (action,) = self.idle(core(), hot(1), SCRIPT)
        assert isinstance(action, Request) and (action.op, action.worker) == (UNLOAD, "model-1")

    def test_nothing_waits_for_the_card(self) -> None:
        assert self.idle(core(), hot(1)) == []

    def test_model_work_waits_too(self) -> None:
        assert not any(
            isinstance(a, Request) and a.op == UNLOAD for a in self.idle(core(), hot(1), SCRIPT, LLM)
        )

    def test_not_before_its_way_back_is_paid(self) -> None:
        placing = core(LARGE)
        assert self.idle(placing, hot(1, "large"), SCRIPT, for_s=70.0) == []
        (action,) = decide(placing, hot(1, "large"), wants=(SCRIPT,), now=81.0)
        assert isinstance(action, Request)

    def test_use_begins_the_count_anew(self) -> None:
        placing = core()
        decide(placing, hot(1), wants=(SCRIPT,), now=0.0)
        decide(placing, hot(1, leases=1), wants=(SCRIPT,), now=59.0)
        assert decide(placing, hot(1), wants=(SCRIPT,), now=61.0) == []

    def test_pinned_and_just_loaded_stay(self) -> None:
        assert self.idle(core(replace(SMALL, pinned=True)), hot(1), SCRIPT) == []
        assert self.idle(core(), hot(1, since_s=30.0), SCRIPT) == []


def test_why_says_what_is_missing_and_what_goes_on() -> None:
    assert "[models.NAME]" in Placing({}).why(View((), ()))
    assert "rigbus[llm]" in core().why(View((), ()))
    assert core().why(View((loading(1), cold(2)), ())) == "model-1 loads small"
    assert "all cold" in core().why(View((cold(1),), ()))


class TestWhatABrokenRigTaught:
    def test_a_request_that_somebody_cancels_is_not_made_again_at_once(self) -> None:
        placing = core(settings=Settings(hot_at_start=1))
        assert decide(placing, cold(), now=0.0) != []
        assert decide(placing, cold(), now=5.0) == []
        assert decide(placing, cold(), now=100.0) != []

    def test_one_that_emptying_holds_up_does_not_hold_up_its_group(self) -> None:
        leaving = Seat("model-1", "pcie-0", Chosen(2, None, "u"), 2, "emptying", "large", leases=1)
        (action,) = decide(core(), leaving, cold(2), asks=(load(worker="model-2"),))
        assert isinstance(action, Place)

    def test_a_server_that_is_away_holds_up_nobody_and_can_be_given_up(self) -> None:
        cloud = Entry("cloud", {"url": "http://far/v1"})
        placing = core(SMALL, cloud)
        chosen = Chosen(1, "cloud", "x", {"url": "http://far/v1"})
        trying = Seat("model-1", "pcie-0", chosen, 1, "loading", "cloud")
        asks = (load(worker="model-2"), load("small", "model-1", "y"), Ask("u", "b", UNLOAD, "", "model-1"))
        over, first, second = decide(placing, trying, cold(2), asks=asks)
        assert isinstance(over, Failed) and over.ask.id == "y"
        assert isinstance(first, Place) and first.seat.worker == "model-2"
        assert isinstance(second, Place) and second.ask.op == UNLOAD, "the link is taken by the first"

    def test_a_person_takes_a_worker_out_of_a_load(self) -> None:
        (action,) = decide(core(), loading(1, "large", ask="gone"), asks=(load(worker="model-1"),))
        assert isinstance(action, Place) and action.model == "small"
        assert decide(core(), loading(1, "large", ask="gone"), asks=(load(),)) == []

    def test_what_the_configuration_says_no_more_is_loaded_anew_when_it_is_idle(self) -> None:
        chosen = Chosen(1, "small", "x", {"path": "/m/old.gguf"})
        seat = Seat("model-1", "pcie-0", chosen, 1, "hot", "small", since_s=5.0)
        assert decide(core(), replace(seat, leases=1)) == []
        (request,) = decide(core(), seat)
        assert isinstance(request, Request) and (request.op, request.model) == (LOAD, "small")
        (place,) = decide(core(), seat, asks=(load(worker="model-1"),))
        assert isinstance(place, Place), "and it is not held already"

    def test_a_model_that_is_configured_no_more_gives_way_to_the_default(self) -> None:
        seat = Seat("model-1", "pcie-0", Chosen(1, "former", "x", {}), 1, "hot", "former", since_s=5.0)
        (request,) = decide(core(), seat)
        assert isinstance(request, Request) and (request.op, request.model) == (LOAD, "small")

    def test_a_broken_model_does_not_come_back_in_turn_with_a_good_one(self) -> None:
        placing = core()
        want = replace(LLM, needs=frozenset({"model:large"}))
        broken = Seat("model-1", "pcie-0", Chosen(1, "large", "x"), 1, "failed", "large", since_s=1.0)
        decide(placing, broken, now=0.0)
        assert decide(placing, hot(1, "small"), wants=(want,), now=10.0) == []
        assert decide(placing, hot(1, "small"), wants=(want,), now=400.0) != []

    def test_no_more_are_hot_than_allowed_when_one_gives_way(self) -> None:
        placing = core(settings=Settings(hot_at_start=0, max_hot=1))
        want = replace(LLM, needs=frozenset({"model:large"}))
        (place,) = decide(placing, hot(1), cold(2), asks=(load("large", automatic=True),), wants=(want,))
        assert isinstance(place, Place) and place.seat.worker == "model-1"

    def test_a_view_without_those_that_are_started_again_decides_nothing_by_itself(self) -> None:
        placing = core(settings=Settings(hot_at_start=1))
        away = {"model-1": Chosen(3, "small", "x")}
        assert placing.step(View((cold(2),), (), (), away), 0.0) == []
        (request,) = placing.step(View((cold(2),), (), (), away), 100.0)
        assert isinstance(request, Request), "it was taken out of the configuration"

    def test_a_worker_that_is_configured_no_more_keeps_no_ask_waiting(self) -> None:
        placing = core(SMALL, Entry("judge", {}, role="brain"))
        away = {"model-4": Chosen(3, "small", "x")}
        asks = (load(),)
        assert placing.step(View((cold(1, role="brain"),), asks, (), away), 0.0) == []
        (failed,) = [
            a
            for a in placing.step(View((cold(1, role="brain"),), asks, (), away), 100.0)
            if not isinstance(a, Request)
        ]
        assert isinstance(failed, Failed) and "no worker can hold" in failed.error

    def test_an_ask_waits_for_its_worker_to_come_back(self) -> None:
        placing = core()
        away = {"model-1": Chosen(3, "small", "a")}
        asks = (load(worker="model-1"), load(id_="a"))
        assert placing.step(View((cold(2),), asks, (), away), 0.0) == []
        failed, _ = placing.step(View((cold(2),), asks, (), away), 100.0)
        assert isinstance(failed, Failed)

    def test_a_model_that_is_always_in_use_gives_way_in_the_end(self) -> None:
        placing = core()
        want = replace(LLM, needs=frozenset({"model:large"}))
        asks = (load("large", automatic=True),)
        assert decide(placing, hot(1, leases=2), asks=asks, wants=(want,), now=0.0) == []
        (place,) = decide(placing, hot(1, leases=2), asks=asks, wants=(want,), now=500.0)
        assert isinstance(place, Place)

    def test_work_for_a_model_that_there_is_not_keeps_no_card(self) -> None:
        placing = core()
        nowhere = replace(LLM, needs=frozenset({"model:nowhere"}))
        decide(placing, hot(1), wants=(SCRIPT, nowhere), now=0.0)
        (request,) = decide(placing, hot(1), wants=(SCRIPT, nowhere), now=100.0)
        assert isinstance(request, Request) and request.op == UNLOAD


def view(rows: list[dict[str, Any]], **more: Any) -> View:
    return view_of({"workers": [], "facts": [], "rows": rows, "demand": [], **more})[0]


def test_an_ask_is_the_rigs_own_by_the_brokers_word_only() -> None:
    row = {"id": "a", "batch": "b", "type": LOAD, "meta": {"model": "small", "automatic": True}}
    assert [a.automatic for a in view([row, {**row, "own": True}]).asks] == [False, True]


def test_a_placement_whose_ask_was_cancelled_is_to_be_taken_back() -> None:
    value = {"generation": 2, "model": "small", "ask": "a", "automatic": True, "cards": ["1"]}
    for state, back in (
        ("cancelled", True),
        ("expired", True),
        ("done", False),
        ("waiting", False),
        (None, False),
    ):
        fact = {"key": "model-1", "rev": 1, "value": value, "ask_state": state}
        (found,) = view([], facts=[fact]).chosen.values()
        assert found == Chosen(2, "small", "a", None, ("1",), automatic=True, taken_back=back)


def test_a_worker_that_says_what_nobody_understands_is_left_alone() -> None:
    row = {"id": "model-1", "info": {"seat": True}, "leases": 0, "willing": True}
    good = {**row, "id": "model-2", "placement": {"generation": 0, "phase": "cold"}}
    for odd in ({"generation": "x"}, [1], {"share": "much"}):
        answer = {"workers": [{**row, "placement": odd}, good], "facts": [], "rows": [], "demand": []}
        view, _ = view_of(answer)
        assert [seat.worker for seat in view.seats] == ["model-2"]
