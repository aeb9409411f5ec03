"""What a worker offers of its model covers what a task may need of it, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from rigbus.bus.tags import MODEL_TYPES, offered_tags, offered_types, tags_fix, wanted_tags
from rigbus.plans import model_tasks


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ({}, True),
        ({"model": ""}, True),
        ({"model": "qwen"}, True),
        ({"model": "other"}, False),
        ({"min_tier": 1}, True),
        ({"min_tier": 2}, True),
        ({"min_tier": 3}, False),
        ({"placement": "split_gpu"}, True),
        ({"placement": "single_gpu"}, False),
        ({"role": "brain"}, True),
        ({"model": "qwen", "min_tier": 2, "placement": "split_gpu", "role": "worker"}, False),
    ],
)
def test_a_model_of_tier_2_on_a_pair_serves_what_asks_for_no_more(asked: dict[str, Any], fits: bool) -> None:
    offered = set(offered_tags("qwen", tier=2, placement="split_gpu", role="brain"))
    assert offered.issuperset(wanted_tags(**asked)) is fits


def test_decide_is_the_brains_where_there_is_one() -> None:
    assert "decide" not in offered_types("worker", brain_elsewhere=True)
    assert offered_types("worker", brain_elsewhere=False) == MODEL_TYPES
    assert offered_types("brain", brain_elsewhere=True) == MODEL_TYPES


def test_the_fix_names_the_fields_of_the_plan() -> None:
    assert "change llm_model, llm_min_tier of" in tags_fix(["tier:4", "model:x"])


def test_plans_and_the_bus_know_the_same_types() -> None:
    assert model_tasks.MODEL_TYPES == MODEL_TYPES
