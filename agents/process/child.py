"""Starting one child and reading it: the part that both implementations of process control share.

Every child goes through a few lines of /bin/sh (cheaper than bash) that enter the folder *in the child*,
because a chdir by the parent would hang the parent with the share. The script's stderr is a pipe to us,
the *entry channel*: ``+`` says "entered", anything else is the reason why not. Then stderr becomes stdout
and the script is replaced by the command, so the command inherits no descriptor of it. The most frequent kind,
``bash -c`` under a supervisor, reads the same lines itself and is started by posix_spawn.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from functools import cache, lru_cache
from time import monotonic

from ..attempts.output import OutputLog, OutputSummary, drain, open_log
from .api import TOKEN_VARIABLE, ExitStatus, Spawn, SpawnError

_ENTER = """\
[ "$PPID" = "$1" ] || kill -KILL "$$"
if [ -n "$2" ]; then
  [ -z "$3" ] || [ -d "$3" ] || { echo "$3: no such file or directory" >&2; exit 125; }
  [ -d "$2" ] || mkdir -p -- "$2" || exit 125
  cd -- "$2" || exit 125
  [ -w . ] || { echo "$2: not writable" >&2; exit 125; }
fi
printf + >&2
exec 2>&1
shift 3
exec "$@"
"""
# The first line closes the race of the parent death signal: a parent that died before the signal was armed.

# The same for a command of bash that needs no death signal: bash itself reads it before the command (BASH_ENV), which
# saves the start of another shell (0.5 ms). It leaves no variable, option, descriptor, hashed program or `$_` behind.
_ENTER_BASH = """\
[[ -z $RIGBUS_ENTER_UMASK ]] || umask "$RIGBUS_ENTER_UMASK"
if [[ -n $RIGBUS_ENTER_NEEDS && ! -d $RIGBUS_ENTER_NEEDS ]]; then
  echo "$RIGBUS_ENTER_NEEDS: no such file or directory" >&2; exit 125
fi
[[ -d $RIGBUS_ENTER ]] || { mkdir -p -- "$RIGBUS_ENTER" && hash -r; } || exit 125
cd -- "$RIGBUS_ENTER" || exit 125
[[ -w . ]] || { echo "$RIGBUS_ENTER: not writable" >&2; exit 125; }
exec 3<&-
unset -v BASH_ENV RIGBUS_ENTER RIGBUS_ENTER_NEEDS RIGBUS_ENTER_UMASK OLDPWD
export OLDPWD
printf + >&2
exec 2>&1
: bash
"""
#: Under which number bash finds these lines; it has no other descriptor past 2.
_SCRIPT_FD = 3
#: The signals that Python ignores: a command has them as every other program has.
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)
# Where one of these is set, bash does not read BASH_ENV, or reads it with options and functions that are not its own.
_CHANGES_BASH = ("BASH", "SHELLOPTS", "POSIX", "RIGBUS_ENTER")
# How bash begins a complaint of the lines above.
_COMPLAINT = re.compile(r"^/proc/self/fd/\d+: line \d+: ", re.MULTILINE)

_TURN_BYTES = 1024 * 1024  # of output, taken in one turn of the caller's loop
_ENTRY_BYTES = 4096
_DEFINITION_ERRNO = {
    errno.E2BIG: "arguments and environment are too long together; pass large values as files",
    errno.EINVAL: "the arguments or the environment are malformed",
}


class BaseChild:
    """Pipes, log and entry channel of one started process. How it ends is the implementations' part."""

    def __init__(self, spec: Spawn, wrapper: list[str]) -> None:
        _check(spec)
        self.token = spec.token
        self.exit_fd: int | None = None
        self.output_fd: int | None = None
        self.entered_fd: int | None = None
        self.entered = False
        self.entry_message = ""
        self.status: ExitStatus | None = None
        self.signalled = False
        self.gathers_orphans = spec.subreaper
        self._entry = bytearray()
        self._summary: OutputSummary | None = None
        self._log = OutputLog(
            spec.log_path if spec.capture else None,
            max_log_bytes=spec.max_log_bytes,
            head_bytes=spec.head_bytes,
            tail_bytes=spec.tail_bytes,
        )
        self._started_at = monotonic()
        try:
            self._popen = self._start(spec, wrapper)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self.close()
            raise _spawn_error(spec, error) from error
        self.pid = self._popen.pid

    def _start(self, spec: Spawn, wrapper: list[str]) -> subprocess.Popen[bytes] | _Spawned:
        theirs: list[int] = []
        try:
            self.entered_fd = self._pipe(theirs)
            if spec.capture:
                self.output_fd = self._pipe(theirs)
            else:
                theirs.append(open_log(spec.log_path) if spec.log_path else os.open(os.devnull, os.O_WRONLY))
            how = _by_itself(spec) if not wrapper else None
            if how is not None:
                return _Spawned(*how, theirs[1], theirs[0])
            return subprocess.Popen(
                [*wrapper, *_by_sh(spec)],
                stdin=subprocess.DEVNULL,
                stdout=theirs[1],
                stderr=theirs[0],
                cwd=spec.cwd,
                env={**spec.env, TOKEN_VARIABLE: spec.token},
                pass_fds=spec.pass_fds,
                umask=spec.umask,
                start_new_session=True,
            )
        finally:
            for fd in theirs:
                os.close(fd)

    @staticmethod
    def _pipe(theirs: list[int]) -> int:
        """Our non-blocking read end; the write end goes to ``theirs``."""
        ours, other = os.pipe()
        theirs.append(other)
        os.set_blocking(ours, False)
        return ours

    @property
    def fds(self) -> list[int]:
        return [fd for fd in (self.exit_fd, self.output_fd, self.entered_fd) if fd is not None]

    def open_log(self) -> None:
        self._log.open()

    def read_output(self) -> bool:
        if self.output_fd is None:
            return False
        if not drain(self.output_fd, self._log, _TURN_BYTES):
            self._close_output()
        return self.output_fd is not None

    def read_entry(self) -> bool:
        while self.entered_fd is not None:
            try:
                data = os.read(self.entered_fd, _ENTRY_BYTES)
            except BlockingIOError:
                break
            self._entry += data[: _ENTRY_BYTES - len(self._entry)]
            self.entered = self.entered or data.endswith(b"+")
            if self.entered or not data:
                self._close_entry()
                said = self._entry.removesuffix(b"+").decode("utf-8", "replace")
                self.entry_message = _COMPLAINT.sub("", said).strip()
        return self.entered

    def finish_output(self) -> OutputSummary:
        if self._summary is None:
            # All that the process itself wrote is in the pipe by now; a grandchild that goes on writing
            # must not hold us, so one bounded turn is enough and EOF is not awaited.
            self.read_output()
            self._close_output()
            self._summary = self._log.close()
        return self._summary

    def close(self) -> None:
        self.finish_output()
        self._close_entry()
        self._close_exit()

    def _close_output(self) -> None:
        fd, self.output_fd = self.output_fd, None
        if fd is not None:
            os.close(fd)

    def _close_entry(self) -> None:
        fd, self.entered_fd = self.entered_fd, None
        if fd is not None:
            os.close(fd)

    def _close_exit(self) -> None:
        fd, self.exit_fd = self.exit_fd, None
        if fd is not None:
            os.close(fd)

    def _ended(self, code: int | None, signal: int | None, message: str = "") -> ExitStatus:
        self.read_entry()
        if not self.entered:
            message = message or self.entry_message or "the process ended before it had entered its folder"
        duration_s = monotonic() - self._started_at
        self.status = ExitStatus(code, signal, self.signalled, duration_s, self.entered, message)
        return self.status


class _Spawned:
    """What Popen is to other commands: its start costs half of Popen's CPU, and has no words for folder and umask."""

    def __init__(
        self, program: str, argv: list[str], env: dict[str, str], script: int, stdout: int, stderr: int
    ) -> None:
        # Every other descriptor of this process closes itself (``_keep_from_children``).
        files = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, stdout, 1),
            (os.POSIX_SPAWN_DUP2, stderr, 2),
            (os.POSIX_SPAWN_DUP2, script, _SCRIPT_FD),
        ]
        self.pid = os.posix_spawn(program, argv, env, file_actions=files, setsid=True, setsigdef=_IGNORED)
        self._code: int | None = None

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self) -> int | None:
        return self._reap(0)

    def _reap(self, options: int) -> int | None:
        if self._code is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:
                pid, status = self.pid, 0  # another waiter of this process took it
            if pid == self.pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code


def _by_sh(spec: Spawn) -> list[str]:
    """The argv of any command, behind ``_ENTER``."""
    enter, needs = ("" if path is None else str(path) for path in (spec.enter, spec.enter_needs))
    return ["/bin/sh", "-c", _ENTER, "rigbus", str(os.getpid()), enter, needs, *spec.argv]


def _by_itself(spec: Spawn) -> tuple[str, list[str], dict[str, str], int] | None:
    """Program, argv, environment and script of a ``bash -c`` that enters its folder itself; None where none can."""
    if spec.enter is None or len(spec.argv) != 3 or spec.argv[0] != "bash" or spec.argv[1] != "-c":
        return None
    if spec.argv[2].startswith(("-", "+")) or any(name.startswith(_CHANGES_BASH) for name in spec.env):
        return None  # the first is taken for an option: bash ends before it reads anything
    bash, script = _bash(spec.env.get("PATH", os.defpath)), _script()
    if bash is None or script is None or spec.pass_fds:
        return None
    env = {
        **spec.env,
        TOKEN_VARIABLE: spec.token,
        "BASH_ENV": f"/proc/self/fd/{_SCRIPT_FD}",
        "RIGBUS_ENTER": str(spec.enter),
        "RIGBUS_ENTER_NEEDS": "" if spec.enter_needs is None else str(spec.enter_needs),
        "RIGBUS_ENTER_UMASK": "" if spec.umask < 0 else f"{spec.umask:o}",
    }
    return bash, list(spec.argv), env, script


@lru_cache(maxsize=16)
def _bash(path: str) -> str | None:
    return shutil.which("bash", path=path)


@cache
def _script() -> int | None:
    """A descriptor of ``_ENTER_BASH``: a file that nobody can remove; None on platforms without such."""
    if not hasattr(os, "memfd_create") or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        made = os.memfd_create("rigbus-enter", os.MFD_CLOEXEC)
    except OSError:
        return None
    os.write(made, _ENTER_BASH.encode())
    # Far from the number that children see it under: a dup2 of a descriptor onto itself may leave it close-on-exec.
    fd = fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, 64)
    os.close(made)
    _keep_from_children()
    return fd


def _keep_from_children() -> None:
    """What this process inherited itself is no child's; what Python opens never is (PEP 446)."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with suppress(OSError):  # the listing's own
                os.set_inheritable(int(name), False)


def _check(spec: Spawn) -> None:
    """What the caller got wrong, before anything is opened."""
    if not spec.argv or not spec.argv[0]:
        raise SpawnError("no program to start: argv is empty; give the command or its argv", "definition")
    if not spec.token:
        raise SpawnError("no token: a process that cannot be found again is never started", "definition")
    if spec.enter is not None and not spec.enter.is_absolute():
        raise SpawnError(f"folder to enter: {spec.enter} is not absolute; give the full path", "definition")


def _spawn_error(spec: Spawn, error: Exception) -> SpawnError:
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, ValueError):
        return SpawnError(f"cannot start {spec.argv[0]!r}: {error}; remove the NUL byte", "definition")
    if number in _DEFINITION_ERRNO:
        return SpawnError(f"cannot start {spec.argv[0]!r}: {_DEFINITION_ERRNO[number]}", "definition")
    return SpawnError(f"cannot start {spec.argv[0]!r} in {spec.cwd}: {error}")
