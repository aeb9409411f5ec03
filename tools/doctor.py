"""``rigbus doctor``: what is wrong with this machine and its rig, each with the one line that mends it."""

from __future__ import annotations

import getpass
import grp
import os
import pwd
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ..bus.errors import ConfigError
from ..bus.mounts import Mount, mount_of
from ..bus.paths import RigPaths, config_files, default_state, locate, read_toml, rig_paths
from .common import print_json, rig_options
from .doctor_checks import gpu, leftovers, limits, models, rig, share, sockets, software, state
from .doctor_checks.children import Answer, Asked, within
from .doctor_checks.findings import Finding, exit_code, lines_of, report

if TYPE_CHECKING:
    from ..bus.config.settings import Loaded

#: How long a folder may take to answer.
FOLDER_S: Final = 5.0
_PROBE: Final = Path(__file__).with_name("doctor_checks") / "folder_probe.py"


@click.command()
@rig_options
def doctor(state: Path | None, shared: Path | None, config: Path | None, as_json: bool) -> int:
    """Look at this machine and its rig, and say what is wrong and how to mend it.

    It needs no running rig, makes nothing, and waits for nothing that hangs. Exit code 1 when something fails.
    """
    findings, head = examine(state, shared, config)
    if as_json:
        print_json(report(findings, head))
    else:
        click.echo(f"rigbus doctor on {head['host']} ({head['system']}), {head['mode']} mode")
        for line in lines_of(findings):
            click.echo(line)
    return exit_code(findings)


def examine(
    state_dir: Path | None, shared: Path | None, config: Path | None
) -> tuple[list[Finding], dict[str, Any]]:
    """Every finding, and the head of the report."""
    loading = _started([sys.executable, "-P", "-c", software.LOAD], software.LOAD_S)
    smi = gpu.start()
    paths, found = _located(state_dir, shared, config)
    head: dict[str, Any] = {
        "as_of": time.time(),
        "host": socket.gethostname(),
        "system": software.platform_line(),
    }
    head |= {"mode": "unknown", "state": None, "shared": None}
    loaded: Loaded | None = None
    if paths is not None:
        more, told = _folders(paths, chosen_state=state_dir is not None, chosen_share=shared is not None)
        found += more
        if told["mode"] != "file" and not any(
            f.check == "configuration" and f.status == "fail" for f in found
        ):
            found, loaded = _settings(found, config)
        head |= told
    found += software.judge(
        software.gather(loading.answer() if loading else Answer(127, err="cannot be started"))
    )
    cards = gpu.gather(smi.answer() if smi else None)
    found += [*limits.judge(limits.gather()), *gpu.judge(cards)]
    if loaded is not None and paths is not None:
        found += _models(loaded, paths.state, cards.rows)
    return found, head


def _models(loaded: Loaded, state: Path, rows: Sequence[Sequence[str]]) -> list[Finding]:
    settings = loaded.settings.model_dump(mode="json")
    try:
        facts = within(FOLDER_S, lambda: models.gather(settings, loaded.warnings, state, rows))
    except TimeoutError:
        fix = "keep models on a local disk"
        return [Finding(models.GROUP, "models", "fail", "a folder with a model does not answer", fix)]
    return list(models.judge(facts))


def _started(argv: list[str], timeout_s: float, *, tidies: bool = False) -> Asked | None:
    try:
        return Asked(argv, timeout_s, tidies=tidies)
    except OSError:
        return None


def _probe(kind: str, folder: Path) -> Asked | None:
    words = [sys.executable, "-I", "-S", "-X", "utf8", str(_PROBE), kind, str(folder)]
    return _started(words, FOLDER_S, tidies=True)


def _located(
    state_dir: Path | None, shared: Path | None, config: Path | None
) -> tuple[RigPaths | None, list[Finding]]:
    """The rig's paths; a configuration that cannot be used is a finding and the defaults go on."""
    found: list[Finding] = []
    try:
        files = within(FOLDER_S, lambda: _read(config))
        said = ", ".join(map(str, files)) or "no file: defaults and RIGBUS_* only"
        found.append(Finding(rig.GROUP, "configuration", "ok", said))
        return within(FOLDER_S, lambda: locate(state_dir, shared, config)), found
    except ConfigError as e:
        found = [_unusable(e)]
    except TimeoutError:
        found = [_silent("a configuration file or the state folder")]
    try:
        return within(FOLDER_S, lambda: rig_paths(state_dir or default_state(), shared)), found
    except ConfigError as e:
        return None, [_unusable(e)]
    except TimeoutError:
        return None, [_silent("the state folder")]


def _read(config: Path | None) -> list[Path]:
    """The configuration files that are there, each read.

    Raises:
        ConfigError: one is not TOML or cannot be read; or ``config`` is not there.
    """
    if config is not None and not config.exists():
        raise ConfigError(f"{config}: no such file; correct --config")
    return [file for file in ([config] if config else config_files()) if read_toml(file) is not None]


def _settings(found: list[Finding], config: Path | None) -> tuple[list[Finding], Loaded | None]:
    """With every setting checked, where a rig is: that loads pydantic, which a machine with only the share is spared."""
    try:
        from ..bus.config.settings import load

        return found, load({}, config)
    except ConfigError as e:
        rest = [finding for finding in found if finding.check != "configuration"]
        return [_unusable(e), *rest], None
    except ImportError:
        return found, None  # a library that is missing has a finding of its own


def _unusable(error: ConfigError) -> Finding:
    what, _, fix = str(error).partition("; ")
    return Finding(rig.GROUP, "configuration", "fail", what, fix or "correct it")


def _silent(what: str) -> Finding:
    fix = "keep both on a local disk: --config FILE, --state DIR or RIGBUS_STATE"
    return Finding(rig.GROUP, "configuration", "fail", f"{what} does not answer", fix)


def _folders(
    paths: RigPaths, *, chosen_state: bool, chosen_share: bool
) -> tuple[list[Finding], dict[str, Any]]:
    """State folder, sockets, rig, shared folder, leftovers: each touched only after a child has shown that it answers."""
    me = os.getuid()
    told = _facts(_probe("state", paths.state))
    facts = state.StateFacts(**told) if told is not None else None
    found = state.judge(facts, paths.state, _mount(paths.state, facts.real if facts else ""), me=me)
    found += sockets.judge(sockets.gather(paths.runtime), me=me)
    known = facts is not None and facts.exists and facts.is_dir
    about = rig.gather(paths) if known else rig.RigFacts()
    found += rig.judge(about)
    lives = about.lock is not None or about.listening
    paths = _served(paths, about, chosen_state=chosen_state, chosen_share=chosen_share)
    here = share.Here(rig=known, own=paths.shared == paths.state / "shared", user=_user())
    asked = _facts(_probe("share", paths.shared))
    seen = share.ShareFacts(**asked) if asked is not None else None
    mount = _mount(paths.shared, seen.real if seen else "")
    found += share.judge(seen, paths.shared, mount, here, _names)
    left = leftovers.gather(paths.runtime, facts.state_id if facts else "", lives, os.environ)
    found += leftovers.judge(left, facts, seen, rig_lives=lives)
    mode = "bus" if about.status is not None else "rig" if known else "file"
    return found, {"mode": mode, "state": str(paths.state), "shared": str(paths.shared)}


def _facts(asked: Asked | None) -> dict[str, Any] | None:
    """What a probe saw; None when it hung or was ended."""
    return asked.answer().object() if asked is not None else None


def _served(paths: RigPaths, about: rig.RigFacts, *, chosen_state: bool, chosen_share: bool) -> RigPaths:
    """With the folder that the rig serves, as the other verbs look for it; nothing is touched."""
    served = (about.run or {}).get("shared")
    own = paths.shared == paths.state / "shared"
    if not chosen_share and isinstance(served, str) and (chosen_state or own):
        return replace(paths, shared=Path(served))
    return paths


def _mount(folder: Path, real: str) -> Mount | None:
    return mount_of(Path(real) if real else folder, resolve=False)


def _names(uid: int, gid: int) -> tuple[str, str]:
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = f"user {uid}"
    try:
        return user, grp.getgrgid(gid).gr_name
    except KeyError:
        return user, str(gid)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a uid without a name, as in some containers
        return f"user {os.getuid()}"
