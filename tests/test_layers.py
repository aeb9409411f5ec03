"""Imports point one way, and looking at the rig costs no import that it does not need."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers import ROOT

# layer -> the layers of ours that it may import; the root's __init__ is the public face and lazy.
ALLOWED = {
    "bus": {"bus"},
    "plans": {"plans"},
    "agents": {"agents", "bus", "plans"},
    "bridge": {"bridge", "bus", "plans"},
    "tools": {"tools", "bus", "plans", "agents", "bridge"},
}
HEAVY = ("zmq", "llama_cpp", "pydantic", "rich", "msgpack", "numpy")
EXAMPLES = ROOT / "plans" / "examples"  # scripts of plans run by path with the standard library only


def sources(layer: str) -> list[Path]:
    return sorted(
        path for path in (ROOT / layer).rglob("*.py") if not path.is_relative_to(EXAMPLES) and path.is_file()
    )


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    return names_in(nodes_of(path), ("rigbus", *path.parent.relative_to(ROOT).parts))


@cache
def nodes_of(path: Path) -> list[ast.Import | ast.ImportFrom]:
    return nodes_in(path.read_bytes())


def nodes_in(text: bytes | str) -> list[ast.Import | ast.ImportFrom]:
    """Each import, lazy ones and TYPE_CHECKING ones included."""
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]


def names_in(nodes: list[ast.Import | ast.ImportFrom], package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of each."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        else:
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, module
            for alias in node.names:  # `from .. import bus` names its module in the alias
                yield node.lineno, f"{module}.{alias.name}"


def layer_of(name: str) -> str | None:
    first, _, rest = name.partition(".")
    return rest.partition(".")[0] or None if first == "rigbus" else None


@pytest.mark.parametrize("layer", ALLOWED)
def test_a_layer_imports_only_the_layers_below_it(layer):
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}"
        for path in sources(layer)
        for line, name in imports_of(path)
        if layer_of(name) in ALLOWED and layer_of(name) not in ALLOWED[layer]
    ]
    assert not wrong, "\n".join(wrong)


def test_inside_the_package_imports_are_relative():
    """An absolute `import bus.wire` would work from the root only, and load the file a second time."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for layer in ALLOWED
        for path in sources(layer)
        for node in nodes_of(path)
        for module in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if not node.level
            else []
        )
        if module.partition(".")[0] in {*ALLOWED, "rigbus"}
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "from ..agents.base import Agent",
        "from .. import agents",
        "from rigbus.agents import base",
        "import rigbus.agents.base",
        "def f():\n    from ..agents import base",
    ],
)
def test_the_layer_rule_sees_every_form_of_import(text):
    """The checks above are only worth something if the reader of imports misses none."""
    assert "agents" in {layer_of(name) for _line, name in names_in(nodes_in(text), ("rigbus", "bus"))}


FOLDER = ("rigbus", "bridge", "folder")
#: The rooms of the bridge's folder in the order of its map: a room imports those that stand before it.
ROOMS = re.findall(
    r"^- `(\w+)`: ", ast.get_docstring(ast.parse((ROOT / "bridge/folder/__init__.py").read_bytes())), re.M
)


def test_the_map_of_the_bridges_folder_names_every_room():
    standing = {path.parent.name for path in (ROOT / "bridge/folder").glob("*/__init__.py")}
    assert len(ROOMS) == len(set(ROOMS))
    assert set(ROOMS) == standing


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_before_it(room):
    """Neither a later one, nor what wires them all."""
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}"
        for path in sorted((ROOT / "bridge/folder" / room).rglob("*.py"))
        for line, name in imports_of(path)
        if (parts := tuple(name.split(".")))[:3] == FOLDER and len(parts) > 3 and parts[3] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def loaded_after(statement: str) -> set[str]:
    code = (
        f"import sys\n{statement}\nprint('\\n'.join(sorted(name.partition('.')[0] for name in sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_import_rigbus_loads_nothing_else():
    assert not loaded_after("import rigbus; rigbus.__version__; dir(rigbus)") & set(HEAVY)


def test_help_loads_neither_the_bus_nor_the_models():
    statement = (
        "import sys; sys.argv = ['rigbus', '--help']\n"
        "from rigbus.tools.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
    )
    heavy = loaded_after(statement) & set(HEAVY)
    assert not heavy, f"rigbus --help imports {', '.join(sorted(heavy))}"


@pytest.mark.parametrize(
    ("module", "later"),
    [
        ("rigbus.bus.broker.broker", {"pydantic", "asyncio"}),
        ("rigbus.agents.worker.main", {"pydantic", "asyncio"}),
        ("rigbus.bridge.folder.service", {"pydantic", "markdown_it", "asyncio"}),
    ],
)
def test_a_process_starts_without_what_it_may_never_need(module: str, later: set[str]) -> None:
    """A rig is ten processes that start at one moment; what only some work needs is loaded when it comes."""
    assert not loaded_after(f"import {module}") & later
