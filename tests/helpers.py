"""What many tests need: waiting for a condition, short folders, processes that always end.

Tests write ``from helpers import wait_for``; the fixtures built on this stand in ``conftest.py``.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
MAX_IPC_PATH = 107  # bytes; sun_path of a Unix socket less its final NUL


def wait_for(
    condition: Callable[[], T], *, timeout_s: float = 10.0, what: str = "", poll_s: float = 0.01
) -> T:
    """The first truthy value of `condition`, asked again every `poll_s` seconds.

    This is the one place of the suite that polls: a test names what it waits for and never sleeps.

    Raises:
        AssertionError: not true within `timeout_s` seconds; the text carries `what` and the last value.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            name = what or getattr(condition, "__name__", "the condition")
            raise AssertionError(f"waited {timeout_s:g} s for {name}; last value: {value!r}")
        time.sleep(poll_s)


def slack() -> float:
    """By how much a bound in seconds is to be stretched: processes that want to run, per core, and at least 1."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@contextmanager
def short_folder(prefix: str = "rb-") -> Iterator[Path]:
    """A private folder under /tmp whose sockets fit into an ``ipc://`` address; removed at the end.

    pytest's own tmp_path is often too long for a Unix socket (macOS: always).
    """
    base = "/tmp" if Path("/tmp").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base)).resolve()
    try:
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """rmtree that also takes folders that a test (or staging) made read-only."""
    for path, _names, _files in os.walk(folder):
        if not os.access(path, os.W_OK | os.X_OK):
            os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def free_ports(n: int) -> list[int]:
    """Ports of loopback on which nobody listens, and that the kernel gives to nobody else until they are used."""
    listeners: list[socket.socket] = []
    try:
        while len(listeners) < n:
            port = random.randrange(_FIRST_GIVEN_PORT - 10_000, _FIRST_GIVEN_PORT)
            try:
                listeners.append(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue  # somebody has it
        return [listener.getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()


def _first_given_port() -> int:
    """From here on the kernel gives ports to connections, and to servers that ask for any."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        return 32768  # other systems begin higher


_FIRST_GIVEN_PORT = max(_first_given_port(), 12_000)  # none below 1024 + 10,000 is asked for


def free_endpoint(folder: Path, name: str | None = None) -> str:
    """An unused ``ipc://`` address in `folder`.

    Raises:
        ValueError: the path is longer than a Unix socket allows; take the `rig_dir` fixture.
    """
    path = folder / (name or f"{uuid.uuid4().hex[:8]}.s")
    if len(os.fsencode(path)) > MAX_IPC_PATH:
        raise ValueError(f"{path}: longer than {MAX_IPC_PATH} bytes; use the rig_dir fixture, not tmp_path")
    return f"ipc://{path}"


class Processes:
    """Processes that a test starts; each is ended by its pid, whatever happens to the test.

    ``start`` sends stdout and stderr to one file a process, so nothing blocks on a full pipe and a failing
    test can show ``output(process)``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[tuple[subprocess.Popen[bytes], Path, IO[bytes]]] = []

    def start(
        self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start `argv` with this process' environment plus `env`, in a session of its own."""
        path = self._folder / f"process-{len(self._started) + 1}.log"
        log = path.open("wb")
        process = subprocess.Popen(
            [str(part) for part in argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
        self._started.append((process, path, log))
        return process

    def python(self, *args: str | Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """``start`` of the Python that runs the tests: ``processes.python("-m", "rigbus.bus.broker.broker")``."""
        return self.start([sys.executable, *args], env=env)

    def output(self, process: subprocess.Popen[bytes]) -> str:
        """What `process` has written so far."""
        for other, path, _log in self._started:
            if other is process:
                return path.read_text("utf-8", "replace")
        raise KeyError(f"pid {process.pid} was not started here")

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """``kill -9`` of this one process (not of its group), and wait for its end."""
        if process.poll() is None:
            process.kill()
        process.wait(timeout=10)

    def stop_all(self, *, grace_s: float = 5.0) -> None:
        """SIGTERM to each that still runs, SIGKILL to its group after `grace_s` seconds."""
        running = [process for process, _path, _log in self._started if process.poll() is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + grace_s
        for process in running:
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_group(process.pid)
                process.wait(timeout=10)
        for _process, _path, log in self._started:
            log.close()
        self._started.clear()


def _signal_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)  # started with its own session: pid is also its group
    except ProcessLookupError:
        pass


def processes_of(folder: Path) -> dict[int, str]:
    """Living processes that belong to a rig in `folder`: {pid: its command line}.

    A process belongs to it when the folder's path stands in its environment (RIGBUS_STATE, the paths of a
    task, TMPDIR), in its arguments, or is where it works: one that cleared its environment is still found
    by the last two. The caller and its ancestors are left out. Empty where there is no /proc.
    """
    proc = Path("/proc")
    if not (proc / "self").exists():
        return {}
    needle = os.fsencode(folder)
    own = _ancestors(os.getpid())
    found: dict[int, str] = {}
    for entry in proc.iterdir():
        if not entry.name.isdigit() or int(entry.name) in own:
            continue
        try:
            arguments = (entry / "cmdline").read_bytes()
            bears = needle in arguments or needle in (entry / "environ").read_bytes()
            bears = bears or os.fsencode((entry / "cwd").readlink()).startswith(needle)
        except OSError:
            continue  # it ended while we looked, or belongs to somebody else
        if bears and not _is_zombie(entry):
            found[int(entry.name)] = arguments.replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return found


def bearers_of_token(prefix: str) -> dict[int, str]:
    """Living processes whose RIGBUS_TOKEN starts with `prefix` (`<state id>` or longer): {pid: token}."""
    found: dict[int, str] = {}
    wanted = b"RIGBUS_TOKEN=" + prefix.encode()
    for entry in Path("/proc").iterdir() if Path("/proc/self").exists() else ():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for variable in variables:
            if variable.startswith(wanted):
                found[int(entry.name)] = variable.partition(b"=")[2].decode("utf-8", "replace")
    return found


def end_all(pids: Iterator[int] | Sequence[int] | Mapping[int, str]) -> None:
    """SIGKILL to each pid that still lives."""
    for pid in list(pids):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def written(file: Path) -> str:
    """What a command has written by now. A shell makes the file first: one that is there may be empty still."""
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""


def open_descriptors() -> set[tuple[str, str]]:
    """What this process has open: number and target. Compare by difference: what is less than before is what an
    earlier test had left to the garbage collector."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add((entry.name, os.readlink(entry)))
        except FileNotFoundError:
            continue  # of this listing
    return found


def _is_zombie(entry: Path) -> bool:
    try:
        return (entry / "stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return True


def _ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            break
    return found
