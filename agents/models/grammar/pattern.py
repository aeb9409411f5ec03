"""Patterns of JSON schemas as rules of a grammar, over the characters of a JSON string. Pure.

A pattern becomes a deterministic automaton and this the rules, one a state: llama.cpp never has more than one way open,
whatever the pattern. `(a?){1900}a{1900}` would otherwise keep thousands of ways for each character. What a pattern
allows is written in JSON's escapes where JSON wants them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from .gbnf import CHARACTERS, PLAIN, Ranges, Rules, Symbols, all_but, char_class, common_to, literal, ranges
from .regex import BadPattern, Branch, Chars, Either, Node, Then, Times, read

MAX_STATES: Final = 1024  #: of the deterministic automaton
MAX_FREE_STATES: Final = 4 * MAX_STATES  #: of the one that is made deterministic
MAX_WORK: Final = 100_000  #: steps of making all automata of a schema deterministic; about 50 ms
_SHORT: Final = {0x08: "b", 0x09: "t", 0x0A: "n", 0x0C: "f", 0x0D: "r", 0x22: '"', 0x5C: "\\"}


class _Automaton:
    """States with steps to others: on a character of a set, or on none. In ``end`` a text may end, in ``sink`` all do."""

    start, end, sink = range(3)

    def __init__(self, branches: Iterable[Branch]) -> None:
        self.steps: list[list[tuple[Ranges, int]]] = [[], [], [(CHARACTERS, self.sink)]]
        self.free: list[list[int]] = [[], [], []]
        for branch in branches:
            start = self._fork(self.start)
            if not branch.from_start:
                self.steps[start].append((CHARACTERS, start))
            last = self.build(branch.node, self._fork(start))
            self.free[last].append(self.end if branch.to_end else self.sink)

    def state(self) -> int:
        if len(self.steps) == MAX_FREE_STATES:
            raise BadPattern(f"its repetitions make an automaton of more than {MAX_FREE_STATES} states")
        self.steps.append([])
        self.free.append([])
        return len(self.steps) - 1

    def build(self, node: Node, start: int) -> int:
        """The state in which ``node`` has been read from ``start``."""
        match node:
            case Chars(of):
                allowed = common_to(of, CHARACTERS)
                if not allowed:
                    raise BadPattern("a class that no character is in")
                end = self.state()
                self.steps[start].append((allowed, end))
                return end
            case Then(parts):
                for part in parts:
                    start = self.build(part, start)
                return start
            case Either(parts):
                end = self.state()
                for part in parts:
                    self.free[self.build(part, start if len(parts) == 1 else self._fork(start))].append(end)
                return end
            case Times(part, least, most):
                return self._repeat(part, start, least, most)

    def _fork(self, start: int) -> int:
        state = self.state()
        self.free[start].append(state)
        return state

    def _repeat(self, part: Node, start: int, least: int, most: int | None) -> int:
        for _ in range(least):
            start = self.build(part, self._fork(start))
        start = self._fork(
            start
        )  # a state of its own: the steps of what comes before do not lead into the loop
        if most is None:
            self.free[self.build(part, start)].append(start)
            return start
        ends = [start]
        for _ in range(most - least):
            ends.append(self.build(part, self._fork(ends[-1])))
        end = self.state()
        for each in ends:
            self.free[each].append(end)
        return end

    def closure(self, states: Iterable[int]) -> frozenset[int]:
        found, todo = set(states), list(states)
        while todo:
            for state in self.free[todo.pop()]:
                if state not in found:
                    found.add(state)
                    todo.append(state)
        # Whatever else may go on from here, it allows no more than the sink does.
        return frozenset({self.sink} if self.sink in found else found)


@dataclass(frozen=True, slots=True)
class Deterministic:
    """State 0 is the start; of each state the steps, no character in two of them, and whether the text may end.

    ``work``: how many steps it took to make.
    """

    steps: Sequence[Sequence[tuple[Ranges, int]]]
    ends: Sequence[bool]
    work: int


def automaton(pattern: str, max_work: int = MAX_WORK) -> Deterministic:
    """The strings that a JSON schema's ``pattern`` matches.

    Raises:
        BadPattern: it is no pattern, has what this language lacks, or needs more than :data:`MAX_STATES`.
    """
    nfa = _Automaton(read(pattern))
    atoms, inside = _atoms(nfa)
    states, made, work = [nfa.closure([nfa.start])], [], len(nfa.steps)
    numbers = {states[0]: 0}
    for state in states:
        targets: dict[int, set[int]] = {}
        for of, target in (step for each in state for step in nfa.steps[each]):
            work += len(inside[of])
            for atom in inside[of]:
                targets.setdefault(atom, set()).add(target)
        moves: dict[frozenset[int], list[tuple[int, int]]] = {}
        for atom, to in targets.items():
            moves.setdefault(frozenset(to), []).append(atoms[atom])
        found: dict[int, list[tuple[int, int]]] = {}
        for to_states, parts in moves.items():
            following = nfa.closure(to_states)
            work += len(following)
            if following not in numbers:
                numbers[following] = len(states)
                states.append(following)
            found.setdefault(numbers[following], []).extend(parts)
        made.append([(ranges(parts), number) for number, parts in found.items()])
        if len(states) > MAX_STATES:
            raise BadPattern(f"its automaton has more than {MAX_STATES} states")
        if work > max_work:
            raise BadPattern(f"the automata of the schema's patterns take more than {MAX_WORK} steps to make")
    return Deterministic(made, [nfa.end in state or nfa.sink in state for state in states], work)


def _atoms(nfa: _Automaton) -> tuple[list[tuple[int, int]], dict[Ranges, list[int]]]:
    """The characters in groups that no set of the automaton divides, and of each set its groups."""
    sets = {of for steps in nfa.steps for of, _ in steps}
    cuts = sorted({cut for of in sets for first, last in of for cut in (first, last + 1)})
    atoms = [(first, after - 1) for first, after in pairwise(cuts)]
    inside = {
        of: [n for first, last in of for n in range(bisect_left(cuts, first), bisect_left(cuts, last + 1))]
        for of in sets
    }
    return atoms, inside


def of_length(found: Deterministic, least: int, most: int | None) -> Deterministic | None:
    """What ``found`` takes of ``least`` to ``most`` characters; None: that is more than :data:`MAX_STATES`.

    Raises:
        BadPattern: it takes nothing of such a length.
    """
    full = least if most is None else most + 1  # counts that make no difference are one
    states, made = [(0, 0)], []
    numbers = {states[0]: 0}
    for state, count in states:
        steps = []
        for of, target in found.steps[state]:
            following = target, min(count + 1, full)
            if most is not None and following[1] > most:
                continue
            if following not in numbers:
                numbers[following] = len(states)
                states.append(following)
            steps.append((of, numbers[following]))
        made.append(steps)
        if len(states) > MAX_STATES:
            return None
    ends = [found.ends[state] and count >= least for state, count in states]
    alive = _that_end(made, ends)
    if not alive[0]:
        raise BadPattern(
            f"it matches no text of {least} to {'any number of' if most is None else most} characters"
        )
    kept = [[(of, target) for of, target in steps if alive[target]] for steps in made]
    return Deterministic(kept, ends, found.work + len(states))


def _that_end(steps: Sequence[Sequence[tuple[Ranges, int]]], ends: Sequence[bool]) -> list[bool]:
    """Of each state, whether a text may end in it or later."""
    before: list[list[int]] = [[] for _ in steps]
    for state, each in enumerate(steps):
        for _, target in each:
            before[target].append(state)
    alive, todo = list(ends), [state for state, end in enumerate(ends) if end]
    while todo:
        for state in before[todo.pop()]:
            if not alive[state]:
                alive[state] = True
                todo.append(state)
    return alive


# ------------------------------------------------------------ rules


def matching(rules: Rules, found: Deterministic) -> str:
    """A JSON string whose text the automaton takes."""
    names = [rules.name("match") for _ in found.steps]
    for name, steps, ends in zip(names, found.steps, found.ends, strict=True):
        alternatives: list[Symbols] = [(literal('"'),)] if ends else []
        for of, target in steps:
            alternatives += [(*symbols, names[target]) for symbols in _written(rules, of)]
        if alternatives:  # none where no text goes: nothing leads there either
            rules.define(name, *alternatives)
    return rules.add("string", (literal('"'), names[0]))


def _written(rules: Rules, of: Ranges) -> list[Symbols]:
    """How JSON writes one character of the ranges."""
    found: list[Symbols] = []
    plain = common_to(of, PLAIN)
    if plain:
        found.append((char_class(plain),))
    rest = [point for first, last in common_to(of, all_but(PLAIN)) for point in range(first, last + 1)]
    if rest:
        escapes = [_SHORT.get(point, f"u{point:04x}") for point in rest]
        found.append((literal("\\"), rules.words("escape", escapes)))
    return found
