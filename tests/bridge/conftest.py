"""Fixtures of the bridge's tests: a real share with real helpers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from folders import Share, open_share


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Share]:
    with open_share(tmp_path / "share") as opened:
        yield opened
