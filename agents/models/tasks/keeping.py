"""``output`` of a generated text: a file, usually in the share, written by a child of its own.

The caller never touches the share: where it hangs, only the child does (DESIGN 1, "Who else sees the share").
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from ....bus.errors import DefinitionError, Unreachable

WRITE_TIMEOUT_S: Final = 10.0
# Of the standard library alone, so that it starts in 20 ms. Written beside its place and renamed: nobody reads a half.
_WRITER: Final = """\
import os, sys
path = sys.argv[1]
os.umask(0o002)
temp = os.path.join(os.path.dirname(path), f".{os.path.basename(path)[:200]}.{os.getpid()}.tmp~")
try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        with open(temp, "xb") as f:
            f.write(sys.stdin.buffer.read())
        os.replace(temp, path)
    except BaseException:
        if os.path.lexists(temp):
            os.unlink(temp)
        raise
except OSError as e:
    print(e.errno or 0, e.strerror or e)
"""
#: What another attempt will not change; the rest is the share's or the disk's, and may pass.
_FOR_EVER: Final = frozenset(
    {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EINVAL}
)


def keep_text(path: Path, text: str, timeout_s: float = WRITE_TIMEOUT_S) -> None:
    """Write ``text`` to the absolute ``path``; its folders are made.

    Raises:
        DefinitionError: the path is no place for a file, or not ours to write.
        Unreachable: the share hangs or is away, or the disk is full: the attempt counts as ``infra``.
    """
    if not path.is_absolute() or "\0" in str(path):
        raise DefinitionError(f"output {str(path)!r}: not an absolute path; begin it with {{BATCH_PATH}}")
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WRITER, os.fspath(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
    )
    try:
        said, _ = child.communicate(text.encode("utf-8", "replace"), timeout=timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()  # not awaited: in a hung share even that has to wait; its end is taken by a later start of a child
        raise Unreachable(f"output {path}: not written within {timeout_s:g} s; is the share there?") from None
    number, _, words = said.decode("utf-8", "replace").strip().partition(" ")
    if child.returncode == 0 and not number:
        return
    why = words or f"its writer ended with {child.returncode}"
    if number.isdigit() and int(number) in _FOR_EVER:
        raise DefinitionError(f"output {path}: {why}; give a path that this rig's user can write")
    raise Unreachable(f"output {path}: {why}")
