"""The environment of a command: an allow-list, so that keys and loader variables stay with the rig."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from ...bus.errors import DefinitionError

MAX_VALUE_BYTES = 64 * 1024  # DESIGN 5: one value

ALLOWED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR"),
    *("CUDA_*", "NVIDIA_*", "OMP_NUM_THREADS", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"),
)
_EXTRA = ("RIGBUS_", "CUDA_", "NVIDIA_")
# These change what every program loads or what bash runs first: only an exact name in env_pass passes one.
_EXACT_ONLY = ("LD_*", "DYLD_*", "BASH_ENV", "BASH_FUNC_*", "ENV", "PS4", "IFS", "PYTHONSTARTUP")
_FALLBACK_PATH = "/usr/local/bin:/usr/bin:/bin"


def task_environment(
    base: Mapping[str, str], extra: Mapping[str, str], env_pass: Sequence[str] = ()
) -> dict[str, str]:
    """What of ``base`` (the worker's environment) a command sees, and ``extra`` on top.

    ``env_pass`` holds the config's further names; ``MY_*`` is a pattern. Loader and shell start-up
    variables (``LD_*``, ``BASH_ENV`` …) pass only by their exact name, the rig's own ``RIGBUS_*`` never:
    those of a command are in ``extra``. PATH starts with the running Python's folder.

    Raises:
        DefinitionError: an ``extra`` name is not RIGBUS_*, CUDA_* or NVIDIA_*, or a value holds a NUL
            or more than 64 KiB (DESIGN 5, "Values are data").
    """
    env = {name: value for name, value in base.items() if _passes(name, env_pass)}
    for name, value in extra.items():
        if not name.startswith(_EXTRA) or "=" in name or "\0" in name:
            raise DefinitionError(
                f"environment variable {name!r}: a task may add only RIGBUS_* names; rename it"
            )
        if "\0" in value:
            raise DefinitionError(
                f"value of {name}: it holds a NUL byte, which no command can receive; remove it"
            )
        size = len(value)
        if 4 * size > MAX_VALUE_BYTES:  # of short ones nobody need count the bytes
            size = len(os.fsencode(value))
        if size > MAX_VALUE_BYTES:
            raise DefinitionError(
                f"value of {name}: {size} bytes, at most {MAX_VALUE_BYTES} fit; pass a file's name instead"
            )
        env[name] = value
    env["PATH"] = _path_with_python(env.get("PATH", _FALLBACK_PATH))
    return env


def _passes(name: str, env_pass: Sequence[str]) -> bool:
    if name.startswith("RIGBUS_"):
        return False
    if name in env_pass:
        return True
    if any(fnmatchcase(name, pattern) for pattern in _EXACT_ONLY):
        return False
    return any(fnmatchcase(name, pattern) for pattern in (*ALLOWED, *env_pass))


def _path_with_python(path: str) -> str:
    """``python3`` in a command is the Python that runs the rig, with what is installed beside it."""
    if not sys.executable:  # an embedded interpreter does not know where it lies
        return path
    folder = os.path.dirname(sys.executable)
    others = [part for part in path.split(os.pathsep) if part != folder]
    return os.pathsep.join([folder, *others])
