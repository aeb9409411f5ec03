"""What there is, for work that asks for a model which there is not. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from ...bus.tags import MODEL, PLACEMENT, TIER
from .placing_view import Entry


def resolved(name: str, catalogue: Mapping[str, Entry]) -> str:
    """The model that a name means: its own, or one of those that will do as well; ``name`` itself where there is none."""
    if name in catalogue:
        return name
    return next((entry.name for entry in catalogue.values() if name in entry.also), name)


def listed(catalogue: Mapping[str, Entry]) -> str:
    """Every model, with what a task may ask of it."""
    return ", ".join(f"{e.name} ({e.role}, tier {e.tier}, {e.placement})" for e in catalogue.values())


def no_model_for(needs: Iterable[str], catalogue: Mapping[str, Entry]) -> str:
    """Why no model of the catalogue has what a task needs of one; "" where one has, or nothing is asked of a model.

    The role is left out: which model judges and decides is the rig's affair.
    """
    asked = {prefix: need for need in needs for prefix in (MODEL, TIER, PLACEMENT) if need.startswith(prefix)}
    wanted = set(asked.values())
    if any(wanted <= entry.tags for entry in catalogue.values()):
        return ""
    name = asked.get(MODEL, "").removeprefix(MODEL)
    entry = catalogue.get(resolved(name, catalogue))
    if name and entry is None:
        near = difflib.get_close_matches(name, catalogue, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"llm_model {name[:200]!r} is not configured; {hint}there are: {listed(catalogue)}"
    words = []
    if (tier := asked.get(TIER)) is not None:
        words.append(f"of tier {tier.removeprefix(TIER)} or more (llm_min_tier)")
    if (placement := asked.get(PLACEMENT)) is not None:
        words.append(f"placed as {placement.removeprefix(PLACEMENT)} (llm_placement)")
    if entry is not None:
        return (
            f"the model {entry.name} is of tier {entry.tier}, placed as {entry.placement}; "
            f"one {' and '.join(words)} is asked for"
        )
    return f"no model is {' and '.join(words)}; there are: {listed(catalogue)}"
