"""A planner that is a program: JSON on its stdin, JSON on its stdout. All that it starts ends with it: what stays in its
process group, and by the token in its environment also what leaves it (where the system shows environments: Linux)."""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final
from uuid import uuid4

from ...agents.process.api import TOKEN_VARIABLE
from ...agents.process.linux import processes
from ..requests import pause
from .asking import MAX_ANSWER_BYTES, AskFailed, Question

log = logging.getLogger(__name__)

STDERR_KEPT: Final = 16 << 10
_CHUNK: Final = 64 << 10
_GRACE_S: Final = 2.0
_LOOK_S: Final = 0.1
_SWEEP_S: Final = 5.0


class CommandPlanner:
    """``command`` is a line for /bin/sh. ``prompt``: it gets the words for a model on stdin in place of the JSON."""

    def __init__(self, command: str, *, timeout_s: float, prompt: bool = False, name: str = "") -> None:
        self.name = (
            name
            or f"planner ({command.split(maxsplit=1)[0].rpartition('/')[2][:60] if command.split() else 'sh'})"
        )
        self._command, self._timeout_s, self._prompt = command, timeout_s, prompt
        # Of a planner that is itself a task of some rig all bears that task's token, and its worker ends it.
        self._token = "" if os.environ.get(TOKEN_VARIABLE) else f"planner:{uuid4().hex}"

    def ask(self, question: Question) -> str:
        """See `asking.Planner`."""
        try:
            return self._asked(question)
        except OSError as e:
            raise AskFailed(f"the planner's command cannot be asked: {e}") from None

    def _asked(self, question: Question) -> str:
        words = f"{question.system}\n\n{question.user}" if self._prompt else json.dumps(question.document)
        folder = tempfile.TemporaryDirectory(prefix="rigbus-planner-", ignore_cleanup_errors=True)
        with folder as scratch:
            schema = Path(scratch) / "schema.json"
            schema.write_text(json.dumps(question.schema), encoding="utf-8")
            names = {**question.names, "RIGBUS_SCHEMA": str(schema), "RIGBUS_ASKED": question.kind}
            with tempfile.TemporaryFile(dir=scratch) as stdin:
                stdin.write(words.encode("utf-8", "replace"))
                stdin.seek(0)
                return self._run(stdin, scratch, names)

    def _run(self, stdin: IO[bytes], scratch: str, names: Mapping[str, str]) -> str:
        process = subprocess.Popen(
            ["/bin/sh", "-c", self._command],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=scratch,
            env={**os.environ, **names, **({TOKEN_VARIABLE: self._token} if self._token else {})},
            start_new_session=True,
        )
        try:
            out, err = self._read(process)
        finally:
            _end(process)
            self._sweep()
        for line in err.decode("utf-8", "replace").splitlines():
            log.info("planner: %s", line[:500])
        if process.returncode != 0:
            last = (err.decode("utf-8", "replace").strip().splitlines() or ["it wrote nothing on stderr"])[-1]
            how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit {process.returncode}"
            raise AskFailed(f"the planner's command ended with {how}: {last[:300]}")
        return out.decode("utf-8", "replace")

    def _sweep(self) -> None:
        """End what has left the group (a daemon, a session of its own)."""
        if not self._token:
            return
        try:
            left = processes().sweep_token(self._token, _SWEEP_S).survivors
        except OSError as e:
            log.warning("what the planner's command may have left running cannot be seen: %s", e.strerror)
            return
        for one in left:
            log.warning("process %d of the planner's command cannot be ended", one.pid)

    def _read(self, process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
        """Both outputs, until both are closed or the process has ended: a grandchild may hold them open.

        Raises:
            AskFailed: not in time, or too much.
        """
        if process.stdout is None or process.stderr is None:
            raise AskFailed("the command has no output")
        until = time.monotonic() + self._timeout_s
        out, err = bytearray(), bytearray()
        with selectors.DefaultSelector() as ready:
            for stream in (process.stdout, process.stderr):
                os.set_blocking(stream.fileno(), False)
                ready.register(stream, selectors.EVENT_READ)
            while ready.get_map():
                ended = _has_ended(process)  # asked first: what it wrote before its end is read below
                found = ready.select(0 if ended else min(_LOOK_S, max(0.0, until - time.monotonic())))
                for key, _ in found:
                    data = os.read(key.fd, _CHUNK)
                    if not data:
                        ready.unregister(key.fileobj)
                    elif key.fileobj is process.stdout:
                        out += data
                    else:
                        err = (err + data)[-STDERR_KEPT:]
                if len(out) > MAX_ANSWER_BYTES:
                    raise AskFailed(f"the planner's command wrote more than {MAX_ANSWER_BYTES >> 20} MiB")
                if ended and not found:
                    break
                if time.monotonic() >= until:
                    raise AskFailed(f"the planner's command did not end within {self._timeout_s:g} s")
        while not _has_ended(process):  # it has closed its outputs and goes on
            if time.monotonic() >= until:
                raise AskFailed(f"the planner's command did not end within {self._timeout_s:g} s")
            pause(_LOOK_S)
        return bytes(out), bytes(err)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Without reaping it where that can be: its number names its group until the group has been killed."""
    if process.returncode is not None:
        return True
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of its group, with all that it has started."""
    if not _has_ended(process):
        _signal(process.pid, signal.SIGTERM)
        until = time.monotonic() + _GRACE_S
        while not _has_ended(process) and time.monotonic() < until:
            pause(_LOOK_S)
    _signal(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _signal(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass  # all have ended (macOS says the latter of a group of zombies)
