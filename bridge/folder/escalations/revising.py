"""An answer -> the plan that a batch is to go on with: the copy that ran, what the answer changes, the check of a drop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ....bus.paths import RigPaths
from ..contract.receipts import Invalid, Problem
from ..intake.core import Settings, drop_settings
from ..intake.drafts import Draft
from ..intake.moves import Later
from ..intake.taking import Taker
from .patching import patched

if TYPE_CHECKING:
    from ....bus.escalation import Answer

_CONFIG: Final = "config.json"


def plan_of(
    taker: Taker, paths: RigPaths, answer: Answer, spec: Mapping[str, Any], mark: str, where: str
) -> Draft:
    """Staged, on the local disk; ``mark`` names the copy that is made for it.

    Raises:
        Invalid: with every fault of the plan, by file and line, or of the answer.  Later: our own disk refuses.
    """
    sha = str(spec.get("sha256"))
    staged = paths.staged / sha
    if not (staged / "plan.md").is_file():
        raise Invalid(
            Problem(f"the plan that ran ({sha[:12]}…) is on this rig no more", where, "submit the plan anew")
        )
    given = _config(answer, spec)
    name = str(spec.get("name") or "plan").rpartition("/")[2]
    try:
        place: Path = taker.journal.copy_place(mark, name)
        try:
            patched(staged, place, answer.files)
            draft = taker.check(place, given)
        finally:
            taker.journal.drop_copy(place)
    except OSError as e:
        raise Later(f"the rig's own disk: {e.strerror or e}; it is applied when that is mended") from None
    if draft.sha256 == sha and draft.config == (spec.get("config") or {}):
        fix = "say retry to run what failed again, or change something"
        raise Invalid(Problem("it changes nothing: plan and configuration are those that failed", where, fix))
    return draft


def _config(answer: Answer, spec: Mapping[str, Any]) -> Settings:
    """The configuration that it ran with, a new ``config.json`` over it, and the answer's own over that."""
    config = dict(spec.get("config") or {})
    if _CONFIG in answer.files:
        found = drop_settings({_CONFIG: answer.files[_CONFIG].encode("utf-8", "replace")})
        if isinstance(found, Problem):
            raise Invalid(found)
        config |= found.config
    return Settings({**config, **answer.config}, None)
