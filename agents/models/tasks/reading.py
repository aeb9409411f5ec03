"""``input`` of a model's task: a text file of its plan or batch, read by a child of its own.

The caller never touches the share: where it hangs, only the child does (DESIGN 1, "Who else sees the share"). The child
(``python -m rigbus.agents.models.tasks.reading``) is told by JSON on its standard input and answers with the bytes. Of the
standard library alone, so that it starts quickly.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ....bus.errors import DefinitionError, RigbusError, Unreachable
from ....plans.stage import StageError
from ....plans.view import make_view

MAX_INPUT_BYTES: Final = 1 << 20
READ_TIMEOUT_S: Final = 20.0
_ROOTS: Final = (("PLAN_PATH", "view"), ("BATCH_PATH", "batch_path"), ("PLAN_PATH", "original"))
#: What another attempt will not change; the rest is the share's, and may pass.
_FOR_EVER: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
    | {errno.ENXIO}
)
_REFUSED: Final = 3  #: the child's exit code for an answer {"class", "message"}


class InputMissing(RigbusError):
    """The file is not there (yet): a share may show it a moment later. Class ``task``, so it is tried again."""

    error_class = "task"


class _Refusal(Exception):
    """In the child: ``cls`` is the error class."""

    def __init__(self, cls: str, message: str) -> None:
        super().__init__(message)
        self.cls = cls


def read_input(path: str, plan: Mapping[str, str] | None, timeout_s: float = READ_TIMEOUT_S) -> str:
    """The text of the file at the absolute ``path``, which lies below the plan's or the batch's folder.

    ``plan`` is that of a task's payload: {staged, original, view, batch_path}.

    Raises:
        DefinitionError: no plan, another place, no regular file, over 1 MiB, not UTF-8, empty, not ours to read.
        InputMissing: there is no such file. Unreachable: the share hangs or is away.
    """
    if plan is None or not all(plan.get(key) for key in ("staged", "original", "view", "batch_path")):
        raise DefinitionError(
            'field "input" is for tasks of plans, which say in "plan" what may be read; send the text itself'
        )
    shown = shown_path(path, plan)
    if not path.startswith("/") or "\0" in path:
        raise DefinitionError(
            f"input {path!r}: no absolute path; begin it with {{BATCH_PATH}} or {{PLAN_PATH}}"
        )
    data = _ask_child({"path": path, "shown": shown, "plan": dict(plan)}, shown, timeout_s)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise DefinitionError(
            f"input {shown}: byte {e.start} is not UTF-8; convert it (iconv -t UTF-8)"
        ) from None
    if text.count("\0") * 10 > len(text):  # a single one is a model's slip, every second one another encoding
        raise DefinitionError(f"input {shown}: it is full of NULs and no UTF-8; convert it (iconv -f UTF-16)")
    if not text.strip():
        raise DefinitionError(f"input {shown}: it is empty; a model would invent what it says")
    return text


def shown_path(path: str, plan: Mapping[str, str]) -> str:
    """The path as the plan's author wrote it."""
    for name, key in _ROOTS:
        folder = plan.get(key)
        if folder and path.startswith(f"{folder}/"):
            return f"{{{name}}}{path[len(folder) :]}"
    return path


def _ask_child(question: Mapping[str, Any], shown: str, timeout_s: float) -> bytes:
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "rigbus.agents.models.tasks.reading"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
    )
    try:
        answer, _ = child.communicate(json.dumps(question).encode(), timeout=timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()  # not awaited: in a hung share even that has to wait; its end is taken by a later start of a child
        raise Unreachable(f"input {shown}: not read within {timeout_s:g} s; is the share there?") from None
    if child.returncode == 0:
        return answer
    if child.returncode != _REFUSED:
        raise Unreachable(f"input {shown}: its reader ended with {child.returncode}")
    said = json.loads(answer)
    error = {"definition": DefinitionError, "task": InputMissing}.get(said["class"], Unreachable)
    raise error(f"input {shown}: {said['message']}")


# -- the child


def read_bounded(path: str, plan: Mapping[str, str]) -> bytes:
    """In the child: the bytes of the file.

    Raises:
        _Refusal: as the errors of :func:`read_input`.
    """
    roots = [os.path.realpath(plan[key]) for _, key in _ROOTS]
    if path.startswith(f"{plan['view']}/"):
        try:
            make_view(Path(plan["staged"]), Path(plan["original"]), Path(plan["view"]))
        except StageError as e:
            raise _Refusal("infra", str(e)) from None
    real = os.path.realpath(path)
    if not any(real.startswith(f"{root}/") for root in roots):
        raise _Refusal(
            "definition",
            f"it lies at {real}, outside of the plan and its batch; copy it into the plan's folder, "
            "or let a task write it to {BATCH_PATH}",
        )
    try:
        fd = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if not os.path.isdir(plan["original"]):
            raise _Refusal("infra", f"the plan's folder {plan['original']} is not there") from None
        raise _Refusal(
            "task", "it is not there; let an earlier task write it, and name that task in depends_on"
        ) from None
    except OSError as e:
        raise _refusal_of(e) from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise _Refusal("definition", "it is no file; name a text file")
        if found.st_size > MAX_INPUT_BYTES:
            what = f"it has {found.st_size} bytes, at most {MAX_INPUT_BYTES}; cut it into pieces (foreach)"
            raise _Refusal("definition", what)
        with open(fd, "rb", closefd=False) as f:
            return f.read(MAX_INPUT_BYTES + 1)
    except OSError as e:
        raise _refusal_of(e) from None
    finally:
        os.close(fd)


def _refusal_of(error: OSError) -> _Refusal:
    if error.errno in _FOR_EVER:
        return _Refusal("definition", f"{error.strerror}; make it a file that the rig's user can read")
    return _Refusal("infra", error.strerror or str(error))


def main() -> int:
    """Read what standard input asks for; the exit code."""
    question = json.load(sys.stdin)
    try:
        data = read_bounded(question["path"], question["plan"])
    except _Refusal as e:
        print(json.dumps({"class": e.cls, "message": str(e)}))
        return _REFUSED
    sys.stdout.buffer.write(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
