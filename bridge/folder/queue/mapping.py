"""A plan's folder as the submitting host names it -> where it lies in the share. Pure.

An ``execute_plan`` file of the Pi bears an absolute path of the Pi. The first of these that leads to a plan wins:
what ``[bridge] path_map`` says; a path below the rig's own share; what follows a folder called as the share is, or
``plans``; the longest end of the path that exists below ``<share>/plans/``.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..contract.receipts import PLAIN_NAME, Invalid, Problem
from ..share.ops import shown

PLANS: Final = "plans"
MAX_PATH_CHARS: Final = 4096
MAX_PARTS: Final = 64
_SETTING: Final = 'set [bridge] path_map = ["FROM=TO"] in rigbus.toml'


@dataclass(frozen=True, slots=True)
class Guess:
    """Places in the share (below ``plans/``) that the path may mean, all as likely. ``how`` is for the receipt."""

    places: tuple[str, ...]
    how: str


def guesses(given: Any, shared: str, path_map: Sequence[str] = ()) -> list[Guess]:
    """Where to look, the best first. ``shared`` is the rig's share, ``path_map`` the setting's ``FROM=TO`` pairs.

    Raises:
        Invalid: it is no path, or the setting leads out of ``plans/``.
    """
    path = _path(given)
    mapped = _mapped(path, shared, path_map)
    if mapped is not None:
        return [mapped]
    parts = [part for part in path.split("/") if part]
    if not path.startswith("/"):
        return _kept([Guess(_below(path), ""), Guess((f"{PLANS}/{path}",), "")])
    if path.startswith(f"{shared}/"):
        inside = path[len(shared) + 1 :]
        return _kept([Guess(_below(inside), "")])
    names = {posixpath.basename(shared), "shared"}
    found: list[Guess] = []
    for i in range(max(0, len(parts) - MAX_PARTS), len(parts)):
        rest = "/".join(parts[i:])
        known = parts[i] == PLANS or (i > 0 and parts[i - 1] in names)
        places = (*(_below(rest) if known else ()), f"{PLANS}/{rest}")
        last = i == len(parts) - 1 and not (i > 0 and parts[i - 1] == PLANS)
        how = f"{shown(path)} was taken for plans/{rest} by its last name only; if it is another plan, {_SETTING}"
        found.append(Guess(places, how if last else ""))
    return _kept(found)


def choose(given: Any, found: Sequence[Guess], there: Mapping[str, int]) -> tuple[str, str]:
    """(the plan's place, a word about it). ``there``: place -> inode of each guess that holds a plan.

    Raises:
        Invalid: none of them is a plan, or two are as likely.
    """
    for guess in found:
        hits = {there[place]: place for place in reversed(guess.places) if place in there}
        if len(hits) > 1:
            both = " and ".join(sorted(hits.values()))
            what = f"plan_path {shown(str(given))[:300]} may mean {both}"
            raise Invalid(Problem(what, "plan_path", f"{_SETTING} for the right one"))
        if hits:
            place = next(iter(hits.values()))
            name = posixpath.basename(place)
            if not PLAIN_NAME.match(name):
                fix = "rename the folder: letters, digits, . _ - (64 at most), a letter or digit first"
                raise Invalid(Problem(f"{shown(name)!r} cannot name a plan", "plan_path", fix))
            return place, guess.how
    tried = ", ".join(dict.fromkeys(place for guess in found for place in guess.places))
    what = f"plan_path {shown(str(given))[:300]} leads to no plan here; looked for {shown(tried)[:500] or 'nothing'}"
    raise Invalid(Problem(what, "plan_path", f"copy the folder to plans/ of the share, or {_SETTING}"))


def _path(given: Any) -> str:
    if not isinstance(given, str) or not given.strip():
        raise Invalid(Problem("plan_path is missing or no text", "plan_path", "give the plan's folder"))
    if "\0" in given or len(given) > MAX_PATH_CHARS:
        raise Invalid(Problem("plan_path is no path", "plan_path", "give the plan's folder"))
    path = posixpath.normpath(given.strip())
    if path.startswith("//"):
        path = path[1:]  # POSIX lets two slashes stand; here they mean one
    if path == ".." or path.startswith("../"):
        raise Invalid(
            Problem(f"plan_path {shown(path)[:200]} leads out of the share", "plan_path", "write it in full")
        )
    if path.endswith("/plan.md"):
        path = path.removesuffix("/plan.md")
    return path


def _mapped(path: str, shared: str, path_map: Sequence[str]) -> Guess | None:
    """What the setting says; the longest FROM wins."""
    pairs = [
        (source.rstrip("/") or "/", target)
        for source, _, target in (pair.partition("=") for pair in path_map)
    ]
    for source, target in sorted(pairs, key=lambda pair: -len(pair[0])):
        if path != source and not path.startswith(source.rstrip("/") + "/"):
            continue
        whole = posixpath.normpath(f"{target}/{path[len(source) :]}")
        inside = whole[len(shared) + 1 :] if whole.startswith(f"{shared}/") else whole
        places = () if inside.startswith("/") else _below(inside)
        if not places:
            what = f"[bridge] path_map leads plan_path to {shown(whole)[:300]}, which is not below plans/ of the share"
            raise Invalid(Problem(what, "rigbus.toml: bridge.path_map", f"write {source}={shared}/plans"))
        return Guess(places, "")
    return None


def _below(inside: str) -> tuple[str, ...]:
    """A place below ``plans/``, or nothing."""
    parts = inside.split("/")
    plain = len(parts) > 1 and parts[0] == PLANS and not any(p in ("", ".", "..") for p in parts)
    return (inside,) if plain else ()


def _kept(found: Sequence[Guess]) -> list[Guess]:
    """Without what holds no place, and without rigbus' own folders below plans/."""
    cut = [
        Guess(tuple(p for p in g.places if "/.rigbus" not in p and ".." not in p.split("/")), g.how)
        for g in found
    ]
    return [guess for guess in cut if guess.places]
