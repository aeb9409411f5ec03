"""A model's child as a process: its start, its pipe, its end with all that it started, its last words."""

from __future__ import annotations

import os
import select
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final

from ...attempts.pipe import PIPE_VARIABLE, Pipe
from ...process.linux import Child, ExitStatus, Processes, Spawn, Sweep
from ...process.tree import peak_rss_bytes
from ..files import check_llama, check_model_file
from ..protocol import LoadOptions

SWEEP_POLL_S: Final = 0.02
_MEMORY_EVERY_S: Final = 5.0  # a look into /proc costs 20 µs
_LAST_WORDS_LINES: Final = 3


class ModelProcess:
    """Of the thread that made it: the parent death signal follows that thread.

    Raises:
        DefinitionError: no such file, no GGUF, or no llama.cpp. SpawnError: it cannot be started.
    """

    def __init__(self, control: Processes, options: LoadOptions, token: str, log_path: Path | None) -> None:
        check_model_file(Path(options.path))
        check_llama()
        self._control = control
        self._sweep: Sweep | None = None
        self._measured_at = float("-inf")
        self.peak_rss_bytes = 0
        self.pipe = Pipe()
        fd = self.pipe.theirs.fileno()
        spec = Spawn(
            argv=[sys.executable, "-P", "-m", "rigbus.agents.models.engine.child"],
            env={**os.environ, PIPE_VARIABLE: str(fd)},  # all of it: CUDA is found through LD_LIBRARY_PATH
            token=token,
            cwd=Path("/"),
            log_path=log_path,
            pass_fds=(fd,),
        )
        try:
            self._child: Child = control.spawn(spec)
        except BaseException:
            self.pipe.close()
            raise
        self.pipe.theirs.close()
        self.pid = self._child.pid
        self.pipe.send({"load": asdict(options)})

    @property
    def dying(self) -> bool:
        """Its end has begun: it is swept."""
        return self._sweep is not None

    def register(self, poller: select.poll) -> None:
        """All that says something of it."""
        for fd in self._child.fds:
            # An ended child's descriptor stays readable: while it is swept, the clock is enough.
            if not self.dying or fd != self._child.exit_fd:
                poller.register(fd, select.POLLIN)
        if not self.pipe.ended:
            unsent = not self.pipe.push()
            poller.register(self.pipe.fileno(), select.POLLIN | (select.POLLOUT if unsent else 0))

    def read(self) -> bool:
        """Its output goes to the log; True when it has just ended by itself."""
        self._child.read_output()
        self._child.read_entry()
        return self._child.poll_exit() is not None and not self.dying

    def kill(self) -> None:
        """End it and all that it started; :meth:`buried` says when that is done."""
        if not self.dying:
            self.measure(float("inf"))
            self._sweep = self._control.kill_tree(self._child)

    def buried(self) -> ExitStatus | None:
        """How it ended, once it and all that it started are dead."""
        if self._sweep is not None and self._sweep.step():
            return self._child.status
        return None

    def kill_and_wait(self) -> None:
        self.kill()
        poller = select.poll()  # nothing to poll for: a clock
        while self._sweep is not None and not self._sweep.step():
            poller.poll(1000 * SWEEP_POLL_S / 5)

    def measure(self, now: float) -> int:
        """The most memory it has held so far, in bytes. What has ended cannot be asked any more."""
        if now - self._measured_at >= _MEMORY_EVERY_S:
            self._measured_at = now
            self.peak_rss_bytes = max(self.peak_rss_bytes, peak_rss_bytes(self.pid) or 0)
        return self.peak_rss_bytes

    def close(self) -> str:
        """Close what belonged to it; its last words for a message."""
        self.pipe.close()
        lines = self._child.finish_output().text().strip().splitlines()[-_LAST_WORDS_LINES:]
        self._child.close()
        return "; its last words: " + " | ".join(line[:200] for line in lines) if lines else ""
