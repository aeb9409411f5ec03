"""Fixtures of the whole suite, and the rules that keep one test from disturbing another."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, Processes, end_all, processes_of, short_folder, wait_for
from hypothesis import HealthCheck, settings

#: A machine with more to do makes an example slow, not wrong.
settings.register_profile("rigbus", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rigbus")

LIVE = ROOT / "tests" / "live"
#: Files that take longest, the longest first: with several processes none of them is to begin when all others have ended.
LONGEST = (
    "live/test_placement.py",
    "live/test_pi_day.py",
    "live/test_placement_rigs.py",
    "live/test_bridge.py",
    "live/test_up.py",
    "live/test_bad_rigs.py",
    "live/test_bench.py",
    "live/test_model_plans.py",
    "agents/worker/test_bad_network.py",
    "live/test_bench_figures.py",
    "live/test_bad_drops.py",
    "live/test_kill_one.py",
    "live/test_demo.py",
    "live/test_lost.py",
    "live/test_chaos.py",
    "live/test_bad_handlers.py",
    "live/test_full_disk.py",
    "live/test_escalations.py",
    "live/test_doctor.py",
    "live/test_batch_files.py",
    "live/test_share_troubles.py",
    "agents/models/engine/test_faults.py",
    "agents/models/test_host.py",
    "sim/test_simulator.py",
    "tools/test_mcp.py",
    "bus/store/test_losses.py",
    "bus/store/test_fail_at_n.py",
    "agents/models/engine/test_embedding.py",
    "plans/test_values_bash.py",
    "bus/store/test_crash_prefixes.py",
    "tools/test_verbs.py",
)
LEAVE_TIME_S = 15.0  # a process that was told to end may need a moment; one that stays longer is a leak
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
LLM_FIX = "`make test` builds it where there is a C++ compiler; by hand: pip install 'rigbus[test-llm]'"


def _keep_bytecode() -> None:
    """Where no bytecode may be written beside the sources, it goes to build/: a rig is ten processes, and without it each
    of them compiles the whole package at its start."""
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", "") and sys.pycache_prefix is None:
        sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(ROOT / "build" / "pycache")
        sys.dont_write_bytecode = False


_keep_bytecode()


class _RootIsNotATestPackage:
    """The repository's root holds the package's own __init__.py; pytest would import it a second time,
    under the name of the folder, as the set-up of a test package. A conftest's hooks are not asked about
    folders above it, so this is registered as a plugin."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        if path == ROOT:
            return pytest.Dir.from_parent(parent, path=path)
        return None


def _hear_ctrl_c() -> None:
    """A shell starts what runs in the background deaf for SIGINT, and all that is started there inherits it."""
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        and threading.current_thread() is threading.main_thread()
    ):
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    _hear_ctrl_c()
    config.pluginmanager.register(_RootIsNotATestPackage(), "rigbus-root-is-not-a-test-package")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """In a fresh checkout each file is rewritten for its asserts once, and then kept as bytecode. All test processes
    collect all files: each begins at another one of a folder, so that it does its share and finds that of the others."""
    report = yield
    own: dict[str, Any] | None = getattr(collector.config, "workerinput", None)  # set by pytest-xdist
    if own is not None and isinstance(collector, pytest.Directory):
        found = report.result
        first = len(found) * int(own["workerid"].removeprefix("gw")) // int(own["workercount"])
        report.result = [*found[first:], *found[:first]]
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    files = {item.path for item in items}  # there are far fewer of them, and to look at a path takes its time
    live = {path for path in files if path.is_relative_to(LIVE)}
    for item in items:
        if item.path in live:
            item.add_marker(pytest.mark.live)
    rank = {path: len(LONGEST) + (path not in live) for path in files}
    rank |= {ROOT / "tests" / name: n for n, name in enumerate(LONGEST)}
    # By path, too: every test process is to have the same order, and within a file it stays as it is written.
    items.sort(key=lambda item: (rank[item.path], item.path))


def pytest_collection_finish() -> None:
    gc.freeze()  # what was collected stays: no collection of garbage is to look at it again


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("llm") is None:
        return
    missing = [name for name in ("llama_cpp", "gguf") if find_spec(name) is None]
    if not missing:
        return
    reason = f"not run: no {' and no '.join(missing)}; {LLM_FIX}"
    if os.environ.get("RIGBUS_REQUIRE_LLM") == "1":
        pytest.fail(f"RIGBUS_REQUIRE_LLM=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither the user's RIGBUS_* variables nor files in the user's folders reach a test, or are touched."""
    private = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("RIGBUS_") and not name.startswith(("RIGBUS_TEST_", "RIGBUS_REQUIRE_")):
                patch.delenv(name)
        for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
            patch.setenv(name, str(private / name.lower()))
        yield


@pytest.fixture(scope="module", autouse=True)
def _nobody_stays_a_subreaper() -> Iterator[None]:
    """A file whose tests become one ends it: orphans of later tests would be this process' to reap, and never be gone."""
    yield
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def rig_dir() -> Iterator[Path]:
    """A short private folder for a rig (see `short_folder`); the test fails when a process of it is left."""
    with short_folder() as folder:
        try:
            yield folder
        finally:
            left = _still_there(folder)
        _fail_for(left, folder)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Starts processes for one test and ends them all (see `helpers.Processes`)."""
    started = Processes(tmp_path)
    try:
        yield started
    finally:
        started.stop_all()


@pytest.fixture(autouse=True)
def _no_process_left_by_a_live_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a live test nothing that it started still runs.

    TMPDIR is a folder of the test's own, inherited by every process and by every temporary folder made
    meanwhile, so it marks them all.
    """
    if request.node.get_closest_marker("live") is None:
        yield
        return
    with short_folder("rbt-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        try:
            yield
        finally:
            left = _still_there(folder)
    _fail_for(left, folder)


def _still_there(folder: Path) -> dict[int, str]:
    """The processes of `folder` that outlive the grace time; they are killed, so that the next test starts
    clean."""
    try:
        wait_for(lambda: not processes_of(folder), timeout_s=LEAVE_TIME_S, what=f"the processes of {folder}")
    except AssertionError:
        left = processes_of(folder)
        end_all(left)
        return left
    return {}


def _fail_for(left: dict[int, str], folder: Path) -> None:
    if left:
        names = "; ".join(f"pid {pid}: {command[:120]}" for pid, command in left.items())
        pytest.fail(f"processes of {folder} outlived the test by {LEAVE_TIME_S:g} s: {names}", pytrace=False)
