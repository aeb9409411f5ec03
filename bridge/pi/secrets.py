"""Secrets of sinks: from the environment, or from files that nobody else can read."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ...bus.errors import ConfigError

MAX_BYTES: Final = 4096


def secret_of(
    sink: str, settings: Mapping[str, Any], name: str, environ: Mapping[str, str] = os.environ
) -> str:
    """The secret ``name`` of a sink's settings; empty where it has none.

    Raises:
        ConfigError: it is named and is not there, is empty, or its file can be read by others.
    """
    place = f"[notify.sinks.{sink}]"
    if plain := settings.get(name):  # what need not be a secret, such as a topic of one's own server
        return str(plain)
    if variable := settings.get(f"{name}_env"):
        value = environ.get(variable, "").strip()
        if not value:
            raise ConfigError(
                f"{place} {name}_env: {variable} is not set or empty; export it, or use {name}_file"
            )
        return _one_line(place, name, value)
    file = settings.get(f"{name}_file")
    return _one_line(place, name, _read(f"{place} {name}_file", Path(file).expanduser())) if file else ""


def _read(place: str, file: Path) -> str:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        raise ConfigError(
            f"{place}: {file}: {e.strerror}; `rigbus notify pair` makes one for a lamp"
        ) from None
    with os.fdopen(fd, "rb") as opened:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{place}: {file} is no file")
        if found.st_uid not in (os.geteuid(), 0):
            raise ConfigError(
                f"{place}: {file} belongs to somebody else; chown it to the user of rigbus notify"
            )
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise ConfigError(f"{place}: others can read {file}; chmod 600 {file}")
        try:
            value = opened.read(MAX_BYTES + 1).decode("ascii").strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"{place}: {file} is no line of plain text") from None
    if not value or len(value) > MAX_BYTES:
        raise ConfigError(f"{place}: {file} is empty or too long; it holds the secret and nothing else")
    return value


def _one_line(place: str, name: str, value: str) -> str:
    if not value.isprintable() or not value.isascii() or len(value) > MAX_BYTES:
        raise ConfigError(f"{place}: its {name} is not one line of plain text")
    return value
