"""Workers that share a card: a model split over two cards, and those of the single cards."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest

from rigbus.agents.brain.exclusion import entangled, exclude, least_shared
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
from rigbus.agents.brain.placing_asks import ABSENT_S
from rigbus.agents.models import seat_core as core

SMALL = Entry("small", {"path": "/s"}, load_s=4.0)
BIG = Entry("big", {"path": "/b", "split": ["1", "2"]}, tier=2, placement="split_gpu", load_s=40.0)
CLOUD = Entry("cloud", {"url": "http://far/v1"}, tier=3)
WANT_BIG = Want("generate", "llm", frozenset({"model:big"}), 1, waits_s=9.0)
WANT_SMALL = Want("generate", "llm", frozenset({"model:small"}), 1, waits_s=9.0)


def placing(*entries: Entry, **settings: Any) -> Placing:
    found = {e.name: e for e in entries or (SMALL, BIG, CLOUD)}
    return Placing(found, Settings(**{"hot_at_start": 0, **settings}), "small")


def single(n: int, model: str | None = None, **more: Any) -> Seat:
    """``model-n`` on card n, hot for long where it holds a model."""
    return held(Seat(f"model-{n}", "pcie-0", Chosen(), cards=(str(n),)), model, **more)


def pair(model: str | None = None, **more: Any) -> Seat:
    seat = Seat("model-cards-1-2", "pcie-0", Chosen(), cards=("1", "2"), split=("1", "2"))
    return held(seat, model, **more)


def held(seat: Seat, model: str | None, **more: Any) -> Seat:
    if model is None:
        return replace(seat, **more)
    now_hot = replace(
        seat, chosen=Chosen(1, model, "old"), generation=1, phase="hot", model=model, since_s=1e3
    )
    return replace(now_hot, **more)


def load(model: str, worker: str = "", id_: str = "a", *, automatic: bool = False) -> Ask:
    return Ask(id_, "b", LOAD, model, worker, automatic)


def places(actions: list[Action]) -> list[tuple[str, str | None]]:
    return [(a.seat.worker, a.model) for a in actions if isinstance(a, Place)]


class TestWhereAModelGoes:
    def test_a_split_model_goes_to_the_worker_of_its_cards_and_no_other_model_does(self) -> None:
        seats = (single(1), single(2), pair())
        assert places(placing().step(View(seats, [load("big")]), 0.0)) == [("model-cards-1-2", "big")]
        assert places(placing().step(View(seats, [load("small")]), 0.0)) == [("model-1", "small")]
        assert places(placing().step(View((pair(),), [load("small")]), 0.0)) == []

    def test_a_card_that_no_pair_has_is_taken_first(self) -> None:
        seats = (single(1), single(2), single(4), pair())
        assert places(placing().step(View(seats, [load("small")]), 0.0)) == [("model-4", "small")]
        want = Want("generate", "llm", frozenset(), 1, 9.0)
        (request,) = placing().step(View(seats, (), (want,)), 0.0)
        assert isinstance(request, Request) and request.worker == "model-4"
        assert least_shared((), seats) is None

    def test_another_split_is_another_worker(self) -> None:
        other = Entry("other", {"path": "/o", "split": ["2", "4"]}, placement="split_gpu")
        (failed,) = placing(SMALL, other).step(View((single(1), pair()), [load("other")]), 0.0)
        assert isinstance(failed, Failed) and "no worker can hold" in failed.error

    def test_the_brains_cards_are_shared_where_the_configuration_says_so(self) -> None:
        brain = Seat("model-brain", "g", Chosen(), cards=("1", "3"), role="brain")
        assert not exclude(brain, single(1, "small"))
        assert exclude(pair(), single(1)) and exclude(single(2), pair()) and not exclude(pair(), single(4))


class TestMakingRoom:
    def test_the_others_are_unloaded_before_the_pair_is_loaded(self) -> None:
        mind = placing()
        seats = (single(1, "small"), single(2), single(4, "small"), pair())
        assert places(mind.step(View(seats, [load("big")]), 0.0)) == [("model-1", None)]
        leaving = single(1, "small", chosen=Chosen(2, None), generation=2, phase="unloading")
        assert places(mind.step(View((leaving, *seats[1:]), [load("big")]), 1.0)) == [], (
            "its memory is not back"
        )
        gone = single(1, chosen=Chosen(2, None), generation=2)
        assert places(mind.step(View((gone, *seats[1:]), [load("big")]), 2.0)) == [("model-cards-1-2", "big")]

    def test_the_pair_gives_way_to_a_single_one(self) -> None:
        want = (WANT_SMALL,)
        asks = [load("small", automatic=True)]
        seats = (single(1), single(2), pair("big"))
        assert places(placing().step(View(seats, asks, want), 0.0)) == [("model-cards-1-2", None)]
        young = (*seats[:2], pair("big", since_s=5.0))
        assert places(placing().step(View(young, asks, want), 0.0)) == [], "no thrash"
        used = (*seats[:2], pair("big", leases=1))
        assert places(placing().step(View(used, asks, want), 0.0)) == []

    def test_all_of_them_must_be_able_to_give_way(self) -> None:
        busy = (single(1, "small"), single(2, "small", leases=1), pair())
        mind = placing()
        assert places(mind.step(View(busy, [load("big")]), 0.0)) == [], "nothing is lost for nothing"
        assert places(mind.step(View(busy, [load("big")]), 500.0)) == [("model-1", None), ("model-2", None)]

    def test_the_pair_whose_others_were_used_longest_ago(self) -> None:
        other = Seat("model-cards-3-4", "pcie-0", Chosen(), cards=("3", "4"), split=("3", "4"))
        mind = placing(SMALL, BIG, replace(BIG, name="large", spec={"path": "/l", "split": ["3", "4"]}))
        seats = [single(1, "small"), single(2), single(3, "small"), single(4), pair("big"), other]
        seats[0], seats[4] = single(1), pair("big")
        mind.step(View([*seats[:2], replace(seats[2], leases=1), *seats[3:]], ()), 0.0)
        asks = [load("small", worker="model-1")]
        assert places(mind.step(View(seats, asks), 50.0)) == [("model-cards-1-2", None)]

    def test_nothing_pinned_gives_way_and_it_is_said(self) -> None:
        mind = placing(replace(SMALL, pinned=True), BIG)
        seats = (single(1, "small"), single(2), pair())
        for ask in (load("big"), load("big", "model-cards-1-2")):
            (failed,) = mind.step(View(seats, [ask]), 0.0)
            assert isinstance(failed, Failed)
            assert "model-1 holds small, which is pinned" in failed.error
            assert "rigbus unload --worker model-1" in failed.error
        assert mind.step(View(seats, (), (WANT_BIG,)), 0.0) == [], "and automation does not ask for it"

    def test_a_person_who_names_the_worker_takes_what_is_used(self) -> None:
        seats = (single(1, "small", leases=1), single(2), pair())
        asks = [load("big", "model-cards-1-2")]
        assert places(placing().step(View(seats, asks), 0.0)) == [("model-1", None)]

    def test_nobody_takes_the_card_while_room_is_made(self) -> None:
        leaving = single(1, "small", chosen=Chosen(2, None), generation=2, phase="unloading")
        seats = (leaving, single(2), pair())
        younger = load("small", "model-2", "y")
        assert places(placing().step(View(seats, [load("big"), younger], (WANT_SMALL,)), 0.0)) == []

    def test_a_model_behind_a_url_needs_no_card(self) -> None:
        cloud = Chosen(1, "cloud", "x", {"url": "http://far/v1"})
        far = single(1, "cloud", chosen=cloud)
        assert places(placing().step(View((far, single(2), pair()), [load("big")]), 0.0)) == [
            ("model-cards-1-2", "big")
        ]
        seats = (single(1), single(2), pair("big"))
        assert places(placing().step(View(seats, [load("cloud")]), 0.0)) == [("model-1", "cloud")]

    def test_one_that_has_not_heard_the_last_word_may_just_obey_an_older_one(self) -> None:
        for said in ({}, {"phase": "failed", "model": "cloud"}):
            deaf = single(1, chosen=Chosen(3, None), generation=1, **said)
            assert places(placing().step(View((deaf, single(2), pair()), [load("big")]), 0.0)) == []

    def test_a_pinned_pair_leaves_the_default_model_a_card(self) -> None:
        mind = placing(SMALL, replace(BIG, pinned=True), hot_at_start=2)
        seats = (single(1), single(2), single(4), pair("big"))
        (request,) = mind.step(View(seats, ()), 0.0)
        assert isinstance(request, Request) and request.worker == "model-4"
        assert mind.step(View((single(1), single(2), pair("big")), ()), 0.0) == []


class TestAway:
    absent: ClassVar = {"model-1": Chosen(3, "small", "x", {"path": "/s"}, ("1",))}

    def test_what_was_decided_for_one_that_is_away_counts(self) -> None:
        mind = placing()
        seats = (single(2), pair())
        assert places(mind.step(View(seats, [load("big")], (), self.absent), 0.0)) == []
        later = mind.step(View(seats, [load("big")], (), self.absent), ABSENT_S + 1)
        assert places(later) == [("model-1", None)], "it comes back to nothing"

    def test_one_that_the_configuration_has_no_more_blocks_no_automation(self) -> None:
        mind = placing()
        seats = (single(2), pair())
        mind.step(View(seats, (), (WANT_BIG,), self.absent), 0.0)
        (request,) = mind.step(View(seats, (), (WANT_BIG,), self.absent), ABSENT_S + 1)
        assert isinstance(request, Request) and request.worker == "model-cards-1-2"


def test_of_two_that_are_both_to_hold_one_by_other_cards_the_used_one_stays() -> None:
    seats = [single(1, "small", leases=1), pair("big"), single(4, "small")]
    assert [s.worker for s in entangled(seats, {})] == ["model-cards-1-2"]
    pinned = {"big": replace(BIG, pinned=True)}
    assert [s.worker for s in entangled(seats, pinned)] == ["model-1"]
    assert places(placing().step(View(seats, ()), 0.0)) == [("model-cards-1-2", None)]


class TestTakenBack:
    """An ask that is cancelled before it is fulfilled."""

    def back(self, seat: Seat, **chosen: Any) -> list[Action]:
        what = replace(seat.chosen, taken_back=True, **chosen)
        return placing().step(View((replace(seat, chosen=what),), ()), 100.0)

    def test_its_load_ends(self) -> None:
        for phase in ("asking", "loading"):
            seat = single(1, "small", phase=phase)
            assert places(self.back(seat)) == [("model-1", None)]

    def test_one_that_the_worker_has_not_heard_yet_is_taken_back_too(self) -> None:
        seat = single(1, chosen=Chosen(1, "small", "a"))
        assert places(self.back(seat)) == [("model-1", None)]

    def test_what_is_hot_already_stays_and_the_ask_is_forgotten(self) -> None:
        (keep,) = self.back(single(1, "small"))
        assert isinstance(keep, Keep) and keep.seat.worker == "model-1"

    def test_the_model_that_was_to_give_way_stays(self) -> None:
        seat = single(1, "small", chosen=Chosen(2, "cloud", "a"), generation=2, phase="emptying")
        assert places(self.back(seat)) == [("model-1", "small")]
        unheard = single(1, "small", chosen=Chosen(2, None, "a"))
        assert places(self.back(unheard)) == [("model-1", "small")], "an unload, too"

    def test_an_unload_that_is_done_or_has_begun_is_no_load(self) -> None:
        for phase in ("unloading", "cold"):
            seat = single(1, "small", chosen=Chosen(2, None, "a"), generation=2, phase=phase)
            assert self.back(seat) == []

    def test_a_live_or_fulfilled_ask_is_no_business_of_it(self) -> None:
        loading = single(1, "small", phase="loading", chosen=Chosen(1, "small", "done long ago"))
        assert placing().step(View((loading,), ()), 0.0) == []

    def test_automation_does_not_ask_for_it_at_once_again(self) -> None:
        mind = placing()
        taken = single(1, "small", phase="loading")
        taken = replace(taken, chosen=replace(taken.chosen, taken_back=True, automatic=True))
        assert places(mind.step(View((taken,), (), (WANT_SMALL,)), 0.0)) == [("model-1", None)]
        empty = single(1, chosen=Chosen(2, None), generation=2)
        assert mind.step(View((empty,), (), (WANT_SMALL,)), 5.0) == []
        assert mind.step(View((empty,), (), (WANT_SMALL,)), 61.0) != []


# -- a rig of cores --------------------------------------------------------------------------------------------


@dataclass
class Worker:
    """The real core of a model worker, with a process whose memory counts until it is closed."""

    seat: Seat
    core: core.SeatCore = field(default_factory=core.SeatCore)
    told: deque[core.Wanted] = field(default_factory=deque)
    beat: dict[str, Any] = field(default_factory=dict)
    leases: int = 0
    here: bool = True
    memory: bool = False
    closing: bool = False


class World:
    """Brain and workers by their own cores; messages, heartbeats and processes as chance has them."""

    def __init__(self, seed: int, *entries: Entry) -> None:
        self.chance = random.Random(seed)
        self.entries = entries
        self.now = 0.0
        self.mind = self.new_mind()
        three = Seat("model-cards-2-3-4", "g-2", Chosen(), cards=("2", "3", "4"), split=("2", "3", "4"))
        seats = [pair(), three, *(single(n) for n in (1, 2, 3, 4))]
        self.workers = {s.worker: Worker(s) for s in seats}
        self.facts: dict[str, Chosen] = {}
        self.asks: dict[str, Ask] = {}
        self.wants: tuple[Want, ...] = ()
        self.token: dict[str, str] = {}
        self.ended: dict[str, str] = {}

    def new_mind(self) -> Placing:
        settings = Settings(hot_at_start=1, max_hot=3, heat_after_s=1.0, cool_after_s=5.0, min_hot_s=8.0)
        return Placing({e.name: e for e in self.entries}, settings, "small")

    def odds(self, share: float) -> bool:
        return self.chance.random() < share

    # the brain

    def chosen(self, worker: str) -> Chosen:
        fact = self.facts.get(worker, Chosen())
        return replace(fact, taken_back=self.ended.get(fact.ask) == "cancelled")

    def view(self) -> View:
        seats = []
        for name, w in self.workers.items():
            if w.here:
                said = {k: v for k, v in w.beat.items() if k in ("generation", "phase", "model", "since_s")}
                seats.append(replace(w.seat, chosen=self.chosen(name), leases=w.leases, **said))
        away = {name: self.chosen(name) for name in self.facts if not self.workers[name].here}
        return View(seats, list(self.asks.values()), self.wants, away)

    def think(self) -> None:
        actions = self.mind.step(self.view(), self.now)
        written = [a.seat.worker for a in actions if isinstance(a, Place | Keep)]
        assert len(set(written)) == len(written), "the second one would be of an old revision"
        for action in actions:
            match action:
                case Place(seat, model, ask):
                    entry = self.mind.catalogue.get(model or "")
                    spec = dict(entry.spec) if entry else None
                    old = self.facts.get(seat.worker, Chosen())
                    made = Chosen(old.generation + 1, model, ask.id, spec, seat.cards, ask.automatic)
                    self.facts[seat.worker] = made
                    self.workers[seat.worker].told.append(core.Wanted(made.generation, model, spec))
                case Keep(seat):
                    self.facts[seat.worker] = replace(self.facts[seat.worker], ask="")
                case Done(ask, _) | Failed(ask, _):
                    self.end(ask.id, "done" if isinstance(action, Done) else "dead")
                case Request(op, model, worker, _):
                    self.ask(op, model, worker, automatic=True)
            self.check()

    def ask(self, op: str, model: str, worker: str, *, automatic: bool = False) -> str:
        id_ = f"t{len(self.ended) + len(self.asks)}"
        self.asks[id_] = Ask(id_, "b", op, model, worker, automatic)
        return id_

    def end(self, id_: str, state: str) -> None:
        if self.asks.pop(id_, None) is not None:
            self.ended[id_] = state

    # the workers

    def obey(self, w: Worker, actions: list[core.Action]) -> None:
        for action in actions:
            match action:
                case core.TakeToken():
                    by = self.token.setdefault(w.seat.group, w.seat.worker)
                    self.obey(w, w.core.step(core.Token(by == w.seat.worker, by), self.now))
                case core.DropToken():
                    if self.token.get(w.seat.group) == w.seat.worker:
                        del self.token[w.seat.group]
                case core.Open(wanted):
                    w.memory = "url" not in (wanted.spec or {})
                    self.check()
                case core.Close():
                    w.closing = True
                case core.Offer():
                    pass

    def work(self, w: Worker, *, calm: bool) -> None:
        if w.told and (calm or self.odds(0.6)):
            self.obey(w, w.core.step(core.Placed(w.told.popleft()), self.now))
        self.obey(w, w.core.due(self.now))
        if w.core.phase == "loading" and (calm or self.odds(0.3)):
            fails = not calm and self.odds(0.2)
            self.obey(w, w.core.step(core.Loads(ready=True, failed="broken" if fails else ""), self.now))
        if w.core.phase == "emptying" and not w.leases:
            self.obey(w, w.core.step(core.Unused(), self.now))
        if w.closing and (calm or self.odds(0.4)):
            w.closing = w.memory = False
            self.obey(w, w.core.step(core.Closed(), self.now))
        if calm:
            w.leases = 0
        elif w.core.phase == "hot":
            w.leases = max(0, w.leases + self.chance.choice((-1, 0, 1)))
        elif w.leases and self.odds(0.5):
            w.leases -= 1
        if calm or self.odds(0.7):
            w.beat = w.core.report(self.now)

    def crash(self, w: Worker) -> None:
        if self.token.get(w.seat.group) == w.seat.worker:
            del self.token[w.seat.group]
        w.core, w.told, w.beat, w.leases, w.memory, w.closing = core.SeatCore(), deque(), {}, 0, False, False
        w.here = False

    def come_back(self, w: Worker) -> None:
        w.here = True
        fact = self.facts.get(w.seat.worker)
        if fact is not None:
            w.told.append(core.Wanted(fact.generation, fact.model, fact.spec))

    # time

    def trouble(self) -> None:
        if self.odds(0.15):
            worker = self.chance.choice(["", "", *self.workers])
            op = self.chance.choice([LOAD, LOAD, LOAD, UNLOAD])
            self.ask(op, self.chance.choice([*self.mind.catalogue, "" if op == UNLOAD else "small"]), worker)
        if self.asks and self.odds(0.1):
            self.end(self.chance.choice(list(self.asks)), "cancelled")
        if self.odds(0.1):
            needs = [frozenset({f"model:{name}"}) for name in self.mind.catalogue]
            kinds = [
                Want("generate", "llm", self.chance.choice(needs), 2, 9.0),
                Want("shell", "script", frozenset(), 1),
            ]
            self.wants = tuple(self.chance.sample(kinds, self.chance.randrange(3)))
        if self.odds(0.03):
            self.crash(self.chance.choice(list(self.workers.values())))
        if self.odds(0.01):
            self.mind = self.new_mind()
        for w in self.workers.values():
            if not w.here and self.odds(0.1):
                self.come_back(w)

    def turn(self, *, calm: bool = False) -> None:
        self.now += 1.0
        if not calm:
            self.trouble()
        for w in self.workers.values():
            if w.here:
                self.work(w, calm=calm)
        self.think()

    def check(self) -> None:
        """Of workers that share a card one is to hold a model, and one has the memory of it."""
        all_ = list(self.workers.values())
        for i, one in enumerate(all_):
            for other in all_[i + 1 :]:
                if exclude(one.seat, other.seat):
                    names = (one.seat.worker, other.seat.worker)
                    assert not all(self.facts.get(n, Chosen()).takes_cards for n in names), names
                    assert not (one.memory and other.memory), names


@pytest.mark.parametrize("seed", [*range(18), 1083, 1204])  # the last two have found something
def test_never_do_two_that_share_a_card_hold_a_model(seed: int) -> None:
    wide = Entry("wide", {"path": "/w", "split": ["2", "3", "4"]}, tier=3, placement="split_gpu")
    world = World(seed, SMALL, BIG, wide, CLOUD)
    for _ in range(300):
        world.turn()
    # quiet again, whatever is asked for comes to its end: nobody waits for somebody who waits for him
    world.wants = ()
    for w in world.workers.values():
        if not w.here:
            world.come_back(w)
    for name in ("big", "wide", "small"):
        last = world.ask(LOAD, name, "")
        for _ in range(200):
            world.turn(calm=True)
            if last in world.ended:
                break
        assert world.ended.get(last) == "done", (name, world.view())
