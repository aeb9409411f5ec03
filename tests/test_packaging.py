"""What is shipped is what the repository says, and each source file is one module."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import defaultdict
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest
from helpers import ROOT

import rigbus
from rigbus.tools.cli import cli

LAYERS = ("bus", "agents", "plans", "bridge", "tools")
EXAMPLES = ROOT / "plans" / "examples"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def package_folders() -> set[str]:
    return {"rigbus"} | {
        ".".join(("rigbus", *init.parent.relative_to(ROOT).parts))
        for layer in LAYERS
        for init in (ROOT / layer).rglob("__init__.py")
        if not init.is_relative_to(EXAMPLES)
    }


def test_the_listed_packages_are_the_folders():
    assert set(SETUPTOOLS["packages"]) == package_folders()


def test_every_folder_with_modules_is_a_package():
    bare = {
        str(path.parent.relative_to(ROOT))
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*.py")
        if not path.is_relative_to(EXAMPLES) and not (path.parent / "__init__.py").exists()
    }
    assert not bare, f"no __init__.py in {', '.join(sorted(bare))}: the wheel would lack them"


def test_the_version_is_said_once():
    assert rigbus.__version__ == PROJECT["project"]["version"]


def test_the_changelog_knows_the_version():
    assert f"## [{rigbus.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_each_source_file_is_loaded_once():
    """`bus.wire` beside `rigbus.bus.wire` would be two enums that never compare equal."""
    names = defaultdict(set)
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name == "__main__" or not file:
            continue
        path = Path(file).resolve()
        if path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "tests") and ".venv" not in str(path):
            names[path].add(name)
    assert ROOT / "__init__.py" in names
    twice = {str(path.relative_to(ROOT)): sorted(found) for path, found in names.items() if len(found) > 1}
    foreign = [name for found in names.values() for name in found if name.partition(".")[0] != "rigbus"]
    assert not twice
    assert not foreign


def test_the_command_and_the_pytest_plugin_are_installed():
    scripts = {point.name: point.value for point in entry_points(group="console_scripts")}
    plugins = {point.name: point.value for point in entry_points(group="pytest11")}
    assert scripts.get("rigbus") == "rigbus.tools.cli:main"
    assert plugins.get("rigbus") == "rigbus.agents.testing"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel built from a clean copy: a stale build/ beside the sources would leak into it."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    left_out = shutil.ignore_patterns(
        ".*", "__pycache__", "build", "dist", "tests", "docs", "*.egg-info", "node_modules"
    )
    shutil.copytree(ROOT, copy, ignore=left_out)
    (copy / "bus" / "__pycache__").mkdir()
    (copy / "bus" / "__pycache__" / "stale.cpython-311.pyc").write_bytes(b"stale")
    code = "from setuptools import build_meta as b; import sys; b.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return archive.namelist()


def test_the_wheel_brings_no_other_top_level_name(wheel):
    """A plain `agents/` in site-packages would overwrite somebody else's package of that name."""
    assert {name.partition("/")[0] for name in wheel} == {"rigbus", f"rigbus-{rigbus.__version__}.dist-info"}


def test_the_wheel_carries_every_module(wheel):
    modules = {
        f"rigbus/{path.relative_to(ROOT)}"
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*.py")
        if "__pycache__" not in path.parts
    }
    modules |= {f"rigbus/{path.name}" for path in ROOT.glob("*.py")}
    assert modules <= set(wheel), sorted(modules - set(wheel))


def test_the_wheel_carries_its_data(wheel):
    expected = {"rigbus/py.typed", "rigbus/bus/PROTOCOL.md"}
    expected |= {
        f"rigbus/{path.relative_to(ROOT)}" for layer in LAYERS for path in (ROOT / layer).rglob("*.sql")
    }
    expected |= {f"rigbus/{path.relative_to(ROOT)}" for path in (ROOT / "bus" / "profiles").glob("*.toml")}
    expected |= {f"rigbus/{path.relative_to(ROOT)}" for path in (ROOT / "bus" / "schemas").glob("*.json")}
    expected |= {
        f"rigbus/{path.relative_to(ROOT)}"
        for path in EXAMPLES.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= set(wheel), sorted(expected - set(wheel))
    assert any(name.startswith("rigbus/plans/examples/") and name.endswith("plan.md") for name in wheel)


def test_the_wheel_carries_no_byproducts(wheel):
    assert not [name for name in wheel if "__pycache__" in name or name.endswith((".pyc", ".pyo"))]
    assert not [name for name in wheel if name.startswith(("rigbus/tests", "rigbus/build", "rigbus/docs"))]


def test_the_base_install_needs_no_compiler():
    """llama-cpp-python comes as source only: in the base install it would shut out a Pi."""
    base = " ".join(PROJECT["project"]["dependencies"])
    assert "llama" not in base
    assert "gguf" not in base


def test_every_target_of_the_makefile_says_what_it_does():
    text = (ROOT / "Makefile").read_text("utf-8")
    phony = set(re.search(r"^\.PHONY:((?:.*\\\n)*.*)$", text, re.M).group(1).replace("\\", " ").split())
    documented = set(re.findall(r"^([a-z][a-z-]*):[^#\n]*## \S", text, re.M))
    assert phony == documented
    assert {"demo", "test", "check", "bench", "bundle", "help"} <= documented


def test_make_alone_prints_the_help():
    done = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "make demo" in done.stdout
    assert "make test" in done.stdout


def test_the_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text("utf-8")
    targets = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)}
    missing = [name for name in targets if name and "://" not in name and not (ROOT / name).exists()]
    assert not missing


def readme_commands() -> list[str]:
    """Each `rigbus …` of the README's code blocks, comments cut off."""
    lines = [line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if line.startswith("    ")]
    parts = [part.strip() for line in lines for part in re.split(r"\s#|;|&&", line)]
    return sorted({part for part in parts if part.startswith("rigbus ")})


@pytest.mark.parametrize("command", readme_commands())
def test_every_command_of_the_readme_exists(command):
    found, words = cli, command.split()[1:]
    while isinstance(found, click.Group) and not (found.invoke_without_command and not words):
        name = words.pop(0)
        nested = found.get_command(click.Context(found), name)
        assert nested is not None, f"no verb {name}"
        found = nested
    known = {flag for parameter in found.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in words if word.startswith("-") and word not in known]
    assert not unknown, f"{command}: no option {unknown}"


def test_every_adr_is_numbered_and_listed():
    folder = ROOT / "docs" / "adr"
    index = (folder / "README.md").read_text("utf-8")
    pages = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert pages
    assert [page[:4] for page in pages] == [f"{n:04d}" for n in range(len(pages))]
    assert not [page for page in pages if page not in index]


TEXT = {".py", ".md", ".toml", ".sh", ".sql", ".json", ".html", ".css", ".js", ""}
OWN_FOLDERS = (*LAYERS, "tests", "docs", ".ci")


def test_no_file_names_a_path_of_the_machine_that_it_was_written_on():
    """Somebody else's clone has no such folder."""
    machine = re.compile("(?<![A-Za-z0-9_.])/" + "(?:work|root)/[a-z.]")
    files = [
        path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"
    ]  # a file in a worktree
    files += [path for name in OWN_FOLDERS for path in (ROOT / name).rglob("*") if path.is_file()]
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in files
        if path.suffix in TEXT and "__pycache__" not in path.parts
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1)
        if machine.search(line)
    ]
    assert not wrong, "\n".join(wrong)
