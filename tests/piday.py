"""A Raspberry Pi that has nothing but the folder: what it writes, by its own wrong clock, and what it reads, until it is so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from helpers import ROOT, wait_for
from rigs import LiveRig

sys.path.insert(0, str(ROOT / "tests" / "bridge"))

from pi.lookout import Lookout

HOUR_S = 3600.0
WAIT_S = 40.0
ENDED = ("complete", "failed", "cancelled")
#: The base install, where zmq cannot be loaded.
NO_ZMQ = (
    "import runpy, sys; sys.modules['zmq'] = None\n"
    "sys.argv[0] = 'rigbus'; runpy.run_module('rigbus', run_name='__main__')"
)


class PiTime(datetime):
    """The clock of the Pi."""

    ahead_s: ClassVar[float] = HOUR_S

    @classmethod
    def now(cls, tz: Any = None) -> PiTime:
        return cls.fromtimestamp(time.time() + cls.ahead_s, tz)


class Day:
    """The rig, and what the Pi has: its folder, its readers, its plans, and a list of what must have run how often."""

    def __init__(self, rig: LiveRig, home: Path) -> None:
        self.rig, self.shared, self.home = rig, rig.shared, home
        self.config = self.shared / "config.json"
        self.lookout = Lookout(self.config)
        self.runs = home / "runs"
        self.expected: Counter[str] = Counter()
        self.batches: dict[str, tuple[str, str]] = {}  #: batch -> plan, and how it is to end
        self.tasks: dict[
            str, bool
        ] = {}  #: file of a task that was ordered by hand -> whether it is to end well
        self.rated = ""
        self.lit = True

    # -- writing, by the Pi's clock --------------------------------------------------------------------------

    @contextmanager
    def writing(self, *paths: Path) -> Iterator[None]:
        """In place; what was written has the time of the Pi."""
        with self.lookout.writing():
            yield
            for path in paths:
                self.touch(path)

    def write(self, make: Callable[..., Path], *args: Any, **fields: Any) -> Path:
        """One file, written in place."""
        with self.writing():
            path = make(self.shared, *args, **fields)
            self.touch(path)
        return path

    def touch(self, path: Path) -> None:
        at = time.time() + PiTime.ahead_s
        try:
            os.utime(path, (at, at))
        except FileNotFoundError:
            return  # taken in already

    def plan(self, folder: Path, text: str, **files: str) -> Path:
        """A plan's folder with its times by the Pi's clock; ``files`` are scripts."""
        (folder / "scripts").mkdir(parents=True)
        (folder / "plan.md").write_text(text)
        for name, script in files.items():
            (folder / f"scripts/{name}.py").write_text(script)
        for path in [*folder.rglob("*"), folder]:
            self.touch(path)
        return folder

    def drop(self, name: str, text: str, *, ready: bool = True, ends: str = "complete", **files: str) -> str:
        """A folder in the inbox, READY last; its batch."""
        folder = self.plan(self.shared / "inbox" / name, text, **files)
        if ready:
            (folder / "READY").touch()
            self.touch(folder / "READY")
        return self.accepted(self.shared / f"inbox/{name}.receipt.json", name, ends)

    # -- reading -----------------------------------------------------------------------------------------------

    def read(self, path: str | Path) -> dict[str, Any]:
        """A file; empty while it is not there."""
        try:
            found: dict[str, Any] = json.loads((self.shared / path).read_text())
        except FileNotFoundError:
            return {}
        return found

    def until(self, path: str | Path, what: Callable[[dict[str, Any]], Any] = bool) -> dict[str, Any]:
        """The file, once it is as wished."""

        def there() -> dict[str, Any] | None:
            found = self.read(path)
            return found if found and what(found) else None

        try:
            found = wait_for(there, timeout_s=WAIT_S, what=str(path))
        except AssertionError as e:
            raise AssertionError(f"{e}; it holds {self.read(path)}") from None
        assert found is not None
        return found

    def accepted(self, receipt: Path, plan: str, ends: str = "complete") -> str:
        """The batch that a receipt names, entered into the list of the day."""
        said = self.until(receipt, lambda found: found["state"] in ("accepted", "refused"))
        assert said["state"] == "accepted", said
        batch: str = said["batch_id"]
        self.batches[batch] = (plan, ends)
        return batch

    def batch(self, batch: str, *states: str) -> dict[str, Any]:
        """Its file, once it has ended (so)."""
        plan, _ = self.batches[batch]
        path = f"plans/{plan}/batches/{batch}/batch.json"
        return self.until(path, lambda found: found["status"] in (states or ENDED))

    def lane(self, name: str, batch: str) -> dict[str, dict[str, Any]]:
        """Task name -> file, of a batch in a lane."""
        found = {}
        for path in (self.shared / name).glob("*.json"):
            fields = self.read(path)
            if fields.get("batch_id") == batch:
                found[str(fields["name"])] = fields
        return found

    def running(self, batch: str, name: str) -> dict[str, Any]:
        """The file of a task, once it runs."""
        there = lambda: self.lane("tasks/processing", batch).get(name)  # noqa: E731
        found = wait_for(there, timeout_s=WAIT_S, what=f"{name} of {batch} to run")
        assert found is not None
        return found

    def ended(self, path: Path) -> dict[str, Any]:
        """The file of a task that was ordered by hand, once it is in the lane of its end."""

        def there() -> dict[str, Any] | None:
            found = [self.read(f"tasks/{lane}/{path.name}") for lane in ("complete", "failed")]
            return next((one for one in found if one), None)

        found = wait_for(there, timeout_s=WAIT_S, what=f"the end of {path.name}")
        assert found is not None
        return found

    def escalation(self, batch: str) -> dict[str, Any]:
        """The open question about a batch."""

        def there() -> dict[str, Any] | None:
            for path in (self.shared / "brain/escalations").glob("*_????????.json"):
                found = self.read(path)
                if found.get("source_task", {}).get("batch_id") == batch:
                    return found
            return None

        found = wait_for(there, timeout_s=WAIT_S, what=f"an escalation about {batch}")
        assert found is not None
        return found

    def cut_power(self) -> None:
        self.lit = False
        self.rig.kill_everything()

    def power_on(self) -> None:
        self.rig.start()
        self.lit = True

    # -- commands ------------------------------------------------------------------------------------------------

    def once(self, id_: str, times: int = 1) -> str:
        """The command that says that it has run; it must have done so ``times`` times in the evening."""
        self.expected[id_] = times
        return f"echo {id_} >> {self.runs}"

    def gated(self, name: str, id_: str, times: int = 1) -> str:
        """A command that waits for :meth:`open`, and then says that it has run."""
        gate = self.home / f"gate-{name}"
        said = self.once(id_, times)
        return f"until [ -e {gate} ]; do sleep 0.05; done; {said}"

    def open(self, name: str) -> None:
        (self.home / f"gate-{name}").touch()

    def counted(self) -> Counter[str]:
        return Counter(self.runs.read_text().split()) if self.runs.exists() else Counter()

    def rigbus(self, *words: str | Path, code: int = 0, **env: str) -> str:
        """The command on the Pi: the base install without zmq, the folder, and no rig's state."""
        given = {"RIGBUS_SHARED": str(self.shared), "RIGBUS_STATE": str(self.home / "none"), **env}
        done = subprocess.run(
            [sys.executable, "-c", NO_ZMQ, *map(str, words)],
            env={**os.environ, **given},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout
