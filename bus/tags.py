"""What a worker says of its model, and a task asks of one, as the texts of ``needs``. Pure.

    model:<name>   tier:<n>   placement:single_gpu | split_gpu   role:worker | brain

A worker offers ``tier:1`` to ``tier:<its own>``, so that a task which asks for a least tier needs one text only, and the
matching stays a comparison of sets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

MODEL_TYPES: Final = ("generate", "parse", "decide", "embed")  #: the task types that a model answers
MODEL, TIER, PLACEMENT, ROLE = "model:", "tier:", "placement:", "role:"
MAX_TIER: Final = 100
WORKER_ROLE, BRAIN_ROLE = "worker", "brain"


def smaller_payload_fix(type_: str) -> str:
    """What to do about a payload that is too large for one message."""
    if type_ in MODEL_TYPES:
        return "split its text over several tasks; in a plan `input` names a file of up to 1 MiB"
    return "write it to a file and send its path"


def offered_tags(
    name: str,
    *,
    tier: int = 1,
    placement: str = "single_gpu",
    role: str = WORKER_ROLE,
    also: Iterable[str] = (),
) -> tuple[str, ...]:
    """What a worker that has this model loaded offers beside its own capabilities; ``tier`` is 1 to 100.

    ``also``: other names that mean this model.
    """
    names = (f"{MODEL}{one}" for one in (name, *also))
    tiers = (f"{TIER}{n}" for n in range(1, min(tier, MAX_TIER) + 1))
    return (*names, *tiers, f"{PLACEMENT}{placement}", f"{ROLE}{role}")


def wanted_tags(
    *,
    model: str | None = None,
    min_tier: int | None = None,
    placement: str | None = None,
    role: str | None = None,
) -> list[str]:
    """What a task needs of a model; what it does not care about is None (or an empty text)."""
    asked = ((MODEL, model), (TIER, min_tier), (PLACEMENT, placement), (ROLE, role))
    return [f"{prefix}{value}" for prefix, value in asked if value]


def offered_types(role: str, *, brain_elsewhere: bool) -> tuple[str, ...]:
    """The task types that a model of this role answers.

    `decide` is the brain's: where the catalogue has a model of the role ``brain`` (``brain_elsewhere`` for a model of
    another role), only that one offers it; without one every model does. So a task `decide` says nothing of roles, and is
    the same task on every rig.
    """
    if role != BRAIN_ROLE and brain_elsewhere:
        return tuple(one for one in MODEL_TYPES if one != "decide")
    return MODEL_TYPES


def is_model_tag(need: str) -> bool:
    """Whether a capability is one of a model."""
    return need.startswith((MODEL, TIER, PLACEMENT, ROLE))


def tags_fix(missing: Iterable[str]) -> str:
    """What would give the rig a model with these tags, and the field of a plan that asked for them."""
    fields = {MODEL: "llm_model", TIER: "llm_min_tier", PLACEMENT: "llm_placement", ROLE: "executor"}
    names = [name for prefix, name in fields.items() if any(one.startswith(prefix) for one in missing)]
    return f"serve such a model (rigbus up --model FILE.gguf), or change {', '.join(names)} of the task"
