"""Plans: the Markdown dialect, its model and checks, task keys, staging and views.

The names below are the package's face. They load on first use (PEP 562), so that staging, which runs in
small helper processes, never pays for pydantic and the Markdown parser.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .check import check_plan
    from .errors import PlanFault, PlanInvalid
    from .keys import (
        BadName,
        ItemsError,
        batch_key,
        item_groups,
        item_id,
        item_key,
        item_keys,
        plan_name,
        select_items,
    )
    from .model import Foreach, InputSpec, ItemDependency, Plan, PlanTask, Settings
    from .parser import load_plan, parse_plan
    from .stage import Staged, StageError, stage_plan
    from .variables import VARIABLE, find_variables
    from .view import harvest_view, make_view, refresh_view
    from .writer import same_plan, write_plan

__all__ = [
    "VARIABLE",
    "BadName",
    "Foreach",
    "InputSpec",
    "ItemDependency",
    "ItemsError",
    "Plan",
    "PlanFault",
    "PlanInvalid",
    "PlanTask",
    "Settings",
    "StageError",
    "Staged",
    "batch_key",
    "check_plan",
    "find_variables",
    "harvest_view",
    "item_groups",
    "item_id",
    "item_key",
    "item_keys",
    "load_plan",
    "make_view",
    "parse_plan",
    "plan_name",
    "refresh_view",
    "same_plan",
    "select_items",
    "stage_plan",
    "write_plan",
]

_HOME = {
    ".check": ("check_plan",),
    ".errors": ("PlanFault", "PlanInvalid"),
    ".keys": (
        "BadName",
        "ItemsError",
        "batch_key",
        "item_groups",
        "item_id",
        "item_key",
        "item_keys",
        "plan_name",
        "select_items",
    ),
    ".model": ("Foreach", "InputSpec", "ItemDependency", "Plan", "PlanTask", "Settings"),
    ".parser": ("load_plan", "parse_plan"),
    ".stage": ("StageError", "Staged", "stage_plan"),
    ".variables": ("VARIABLE", "find_variables"),
    ".view": ("harvest_view", "make_view", "refresh_view"),
    ".writer": ("same_plan", "write_plan"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
