"""The parent's end of one folder helper: its process and pipes, and the memory of which share it serves."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .frames import HEAD
from .ops import Op

log = logging.getLogger(__name__)

_HELPER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "helper.py")


@dataclass
class Batch:
    ticket: int
    kind: str
    ops: Sequence[Op]
    deadline_s: float


@dataclass
class Helper:
    kind: str
    process: subprocess.Popen[bytes]
    fresh: bool = True
    batch: Batch | None = None
    due: float = 0.0
    outgoing: memoryview = field(default_factory=lambda: memoryview(b""))
    incoming: bytearray = field(default_factory=bytearray)

    @property
    def out_fd(self) -> int:
        return self.process.stdout.fileno() if self.process.stdout else -1

    @property
    def in_fd(self) -> int:
        return self.process.stdin.fileno() if self.process.stdin else -1

    def write_some(self) -> None:
        """As much as the pipe takes; a closed pipe shows as end of stdout."""
        try:
            while self.outgoing:
                self.outgoing = self.outgoing[os.write(self.in_fd, self.outgoing) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.outgoing = memoryview(b"")

    def read_some(self) -> bool:
        """What has come; False at the end: the helper is dead."""
        while True:
            try:
                piece = os.read(self.out_fd, 1 << 20)
            except BlockingIOError:
                return True
            if not piece:
                return False
            self.incoming += piece

    def answer(self) -> tuple[dict[str, Any], bytes] | None:
        """One whole frame, when it is there."""
        if len(self.incoming) < HEAD.size:
            return None
        head, body = HEAD.unpack_from(self.incoming)
        end = HEAD.size + head + body
        if len(self.incoming) < end:
            return None
        header = json.loads(self.incoming[HEAD.size : HEAD.size + head])
        data = bytes(self.incoming[HEAD.size + head : end])
        del self.incoming[:end]
        return header, data

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


def start_helper(kind: str, root: str) -> Helper:
    """A new helper process for the share at ``root``; nothing of the share is touched yet."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-X", "utf8", _HELPER, root, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",  # never in the share: a working directory there would pin it
        start_new_session=True,  # Ctrl-C is for the bridge, which ends its helpers itself
    )
    helper = Helper(kind, process)
    os.set_blocking(helper.in_fd, False)
    os.set_blocking(helper.out_fd, False)
    return helper


def recall(file: Path | None, root: str) -> str | None:
    """The id that the share at ``root`` had last time; None at first use."""
    return _ids(file).get(root)


def keep(file: Path | None, root: str, folder_id: str) -> None:
    """Remember the id on the local disk. A failure is logged: the share works, only less guarded."""
    if file is None:
        return
    text = json.dumps({**_ids(file), root: folder_id}, indent=1)
    temp = file.with_name(file.name + ".tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temp.write_text(text, "utf-8")
        os.replace(temp, file)
    except OSError as error:
        log.warning("cannot keep the share's id in %s: %s", file, error)


def _ids(file: Path | None) -> dict[str, str]:
    if file is None:
        return {}
    try:
        ids = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in ids.items()} if isinstance(ids, dict) else {}
