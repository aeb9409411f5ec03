"""``python -m fuzzing``: each target for some time under atheris, a process each; what it finds lies in build/fuzz."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from fuzzing.targets import ROOT, TARGETS

FOUND = ROOT / "build" / "fuzz"


def main() -> int:
    """0 when nothing was found, or when atheris is not there (which is said)."""
    parser = argparse.ArgumentParser(prog="fuzzing", description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; all when none is named")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument(
        "--input", type=Path, help="play this one input of the one target, with its traceback"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    a = parser.parse_args()
    unknown = [name for name in a.targets if name not in TARGETS]
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if a.one:
        return fuzz(a.one, a.seconds)
    if a.input is not None:
        if len(a.targets) != 1:
            parser.error("--input wants one target")
        TARGETS[a.targets[0]][0](a.input.read_bytes())
        print(f"{a.input}: taken or refused as it should be")
        return 0
    if find_spec("atheris") is None:
        print(
            "not fuzzed: atheris is not there; pip install 'rigbus[fuzz]' (CPython 3.11 to 3.13, Linux or macOS)"
        )
        return 0
    failed = []
    for name in a.targets or TARGETS:
        words = [sys.executable, "-m", "fuzzing", "--one", name, "--seconds", str(a.seconds)]
        print(f"== {name}: {a.seconds} s", flush=True)
        if subprocess.run(words, env={**os.environ, "PYTHONHASHSEED": "0"}, check=False).returncode:
            failed.append(name)
    for name in failed:
        print(
            f"{name}: found something; python -m fuzzing {name} --input {FOUND / name}/found/<file> plays it again"
        )
    return 1 if failed else 0


def fuzz(name: str, seconds: int) -> int:
    """One target in this process, which libFuzzer ends."""
    import atheris

    target, seeds = TARGETS[name]
    corpus, given, found = (FOUND / name / part for part in ("corpus", "seeds", "found"))
    for folder in (corpus, given, found):
        folder.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(seeds()):
        (given / f"{i:03d}").write_bytes(seed)
    for module in [m for n, m in sorted(sys.modules.items()) if n.startswith("rigbus.")]:
        for value in vars(module).values():
            if getattr(value, "__module__", "") == module.__name__ and callable(value):
                _instrument(atheris, value)
    options = [
        "-max_len=8192",
        f"-max_total_time={seconds}",
        "-timeout=20",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
    ]
    atheris.Setup(
        [f"fuzz-{name}", str(corpus), str(given), f"-artifact_prefix={found}/", *options],
        target,
        internal_libfuzzer=True,
    )
    atheris.Fuzz()
    return 0


def _instrument(atheris: object, value: object) -> None:
    """Branches and comparisons of a function, or of a class's methods, guide what comes next."""
    instrument = atheris.instrument_func  # type: ignore[attr-defined]
    if isinstance(value, type):
        for part in list(vars(value).values()):
            if getattr(part, "__code__", None) is not None:
                instrument(part)
    elif getattr(value, "__code__", None) is not None:
        instrument(value)


if __name__ == "__main__":
    sys.exit(main())
