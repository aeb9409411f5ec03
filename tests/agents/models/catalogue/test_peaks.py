"""Measured peaks are remembered: by content and way of loading, by several processes, and despite a damaged file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rigbus.agents.models.catalogue.peaks import FILE, MAX_PEAKS, known_peak, peak_key, remember_peak

HOW = {"ctx": 4096, "parallel": 8, "gpu_layers": -1}


def test_the_largest_measure_is_kept(tmp_path):
    assert known_peak(tmp_path, "k") is None
    for mb, known in ((500, 500), (700, 700), (600, 700)):
        remember_peak(tmp_path, "k", mb, at=1.0, model="m")
        assert known_peak(tmp_path, "k") == known
    assert known_peak(tmp_path, "other") is None
    assert oct((tmp_path / FILE).stat().st_mode & 0o777) == "0o600"


def test_another_content_or_way_of_loading_has_another_key(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"a" * 100)
    key = peak_key(path, **HOW)
    assert peak_key(path, **HOW) == key
    others = [
        peak_key(path, **{**HOW, **change}) for change in ({"ctx": 8192}, {"parallel": 1}, {"gpu_layers": 3})
    ]
    others.append(peak_key(path, **HOW, cards=2))
    info = path.stat()
    path.write_bytes(b"b" * 100)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    others.append(peak_key(path, **HOW))
    assert len({key, *others}) == 6
    path.rename(tmp_path / "moved.gguf")
    assert peak_key(tmp_path / "moved.gguf", **HOW) == others[-1], "the name is not the content"
    with pytest.raises(FileNotFoundError):
        peak_key(path, **HOW)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{torn",
        b"\xff\xfe",
        b"[]",
        b'{"schema": "rigbus.models/9", "peaks": {"k": {"mb": 5}}}',
        b'{"schema": "rigbus.models/1", "peaks": 7}',
        b'{"schema": "rigbus.models/1", "peaks": {"k": {"mb": "much"}}}',
        b'{"schema": "rigbus.models/1", "peaks": {"k": {"mb": -3}, "k": [], "k": {"mb": true}}}',
        b"[" * 100_000,
        b" " * (2 << 20),
    ],
)
def test_a_damaged_file_is_no_obstacle(tmp_path, text):
    (tmp_path / FILE).write_bytes(text)
    assert known_peak(tmp_path, "k") is None
    remember_peak(tmp_path, "k", 800, at=1.0, model="m")
    assert known_peak(tmp_path, "k") == 800


def test_the_oldest_are_forgotten(tmp_path):
    peaks = {f"k{n}": {"mb": 1 + n, "at": 0.0, "model": "m"} for n in range(MAX_PEAKS)}
    (tmp_path / FILE).write_text(json.dumps({"schema": "rigbus.models/1", "peaks": peaks}))
    remember_peak(tmp_path, "k0", 1, at=1.0, model="m")  # used again: now the newest
    remember_peak(tmp_path, "new", 9, at=1.0, model="m")
    assert len(json.loads((tmp_path / FILE).read_text())["peaks"]) == MAX_PEAKS
    assert (known_peak(tmp_path, "k0"), known_peak(tmp_path, "k1"), known_peak(tmp_path, "new")) == (
        1,
        None,
        9,
    )


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from rigbus.agents.models.catalogue.peaks import remember_peak\n"
        "for n in range(20): remember_peak(Path(sys.argv[1]), f'{sys.argv[2]}-{n}', 1 + n, at=0.0, model='m')"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)]) for n in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert len(json.loads((tmp_path / FILE).read_text())["peaks"]) == 60
