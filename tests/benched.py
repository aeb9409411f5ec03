"""The benches as a person types them."""

from __future__ import annotations

import subprocess
import sys


def bench(*words: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """`rigbus bench` with its output piped."""
    return subprocess.run(
        [sys.executable, "-m", "rigbus", "bench", *words],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
