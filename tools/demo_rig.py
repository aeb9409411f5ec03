"""The demo's private rig: a real `rigbus up` in a folder of its own, ended with it."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from ..agents.supervisor.lifeline import Lifeline
from ..bus.errors import RigbusError

START_S: Final = 30.0
STOP_S: Final = 30.0
SLOTS: Final = 2  #: tasks at once in each worker, so that a killed one has something to lose
EXAMPLE: Final = Path(__file__).resolve().parent.parent / "plans" / "examples" / "code_census"


class DemoRig:
    """A rig in a new temporary folder. ``stay``: it goes on when this process ends."""

    def __init__(self, *, workers: int = 2, model: Path | None = None, stay: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rigbus-demo-"))
        self.state = self.folder / "state"
        self.shared = self.folder / "shared"
        self.talk = self.folder / "up.log"
        self.run: dict[str, Any] = {}
        self._workers = workers
        self._model = model
        self._stay = stay
        self._lifeline = Lifeline()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> dict[str, Any]:
        """Start it and wait until it is ready: what `up --json` printed.

        Raises:
            RigbusError: it did not get ready; the message has its last words.
        """
        self.shared.mkdir()
        words = [sys.executable, "-P", "-m", "rigbus", "up", "--json", "--workers", str(self._workers)]
        words += ["--state", str(self.state), "--shared", str(self.shared)]
        words += ["--model", str(self._model.absolute())] if self._model is not None else []
        # The user's own settings and rig stay out of it (the working folder, too: no rigbus.toml is there).
        env = {name: value for name, value in os.environ.items() if not name.startswith("RIGBUS_")}
        env["RIGBUS_SLOTS"] = str(SLOTS)
        fds: tuple[int, ...] = ()
        if not self._stay:
            # With us dies the rig, also when we are killed.
            env |= self._lifeline.env
            fds = (self._lifeline.read_fd,)
        with self.talk.open("wb") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                pass_fds=fds,
                cwd=self.folder,
                start_new_session=True,
            )
        line = self._first_line()
        if not line:
            raise RigbusError(f"the rig did not get ready in {START_S:g} s: {self.last_words()}")
        self.run = json.loads(line)
        return self.run

    def _first_line(self) -> bytes:
        process = self._process
        if process is None or process.stdout is None:
            return b""
        ready, _, _ = select.select([process.stdout], [], [], START_S)
        return process.stdout.readline() if ready else b""

    def last_words(self, lines: int = 3) -> str:
        """The end of what the supervisor has said."""
        try:
            return " · ".join(self.talk.read_text("utf-8", "replace").splitlines()[-lines:])
        except OSError:
            return "nothing is known"

    def said(self, about: str) -> list[str]:
        """The supervisor's lines about one process."""
        try:
            lines = self.talk.read_text("utf-8", "replace").splitlines()
        except OSError:
            return []
        return [line for line in lines if line.startswith(about)]

    def drop(self, plan: Path, ready: dict[str, Any]) -> Path:
        """Drop a copy of ``plan`` into the inbox, complete with READY, as a person would."""
        inbox = self.shared / "inbox"
        inbox.mkdir(exist_ok=True)
        target = inbox / plan.name
        shutil.copytree(plan, target, ignore=shutil.ignore_patterns("__pycache__"))
        (target / "READY").write_text(json.dumps(ready) if ready else "", encoding="utf-8")
        return target

    def stop(self) -> None:
        """End the rig, and wait for it."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                # Its end closes the lifeline of everything below it.
                process.kill()
                process.wait(timeout=5)
        if process is not None and process.stdout is not None:
            process.stdout.close()
        self._process = None
        self._lifeline.close()

    def leave(self) -> None:
        """Let it go on without us."""
        if self._process is not None:
            self._process.returncode = 0  # no oversight: Popen would warn at our exit
            self._process = None
        self._lifeline.close()

    def clear(self) -> None:
        """Remove everything but what was put at the folder's top for people (the report)."""
        for path in (self.state, self.shared):
            for folder, _, _ in os.walk(path):
                if not os.access(folder, os.W_OK | os.X_OK):
                    os.chmod(folder, 0o700)  # staged plans are read-only
            shutil.rmtree(path, ignore_errors=True)
        self.talk.unlink(missing_ok=True)
