"""`make bundle`: a folder that installs without a network.

It asks the package index and takes half a minute, so it runs only when RIGBUS_TEST_BUNDLE=1 says so
(CI does).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, short_folder

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("RIGBUS_TEST_BUNDLE") != "1", reason="not run: RIGBUS_TEST_BUNDLE=1 make test runs it"
    ),
    pytest.mark.timeout(300),
]


def run(*argv: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in argv],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture(scope="module")
def bundle():
    with short_folder() as folder:
        done = run("bash", "tools/scripts/bundle.sh", sys.prefix, BUNDLE_DIR=str(folder / "bundle"))
        assert done.returncode == 0, done.stdout + done.stderr
        yield folder / "bundle", done.stdout


def test_the_bundle_installs_where_there_is_no_network(bundle):
    _folder, said = bundle
    assert "trial install without a network: ok" in said or "trial install without a network: not run" in said


def test_install_twice_brings_the_environment_up_to_date(bundle, tmp_path):
    folder, _said = bundle
    for _time in range(2):
        done = run("sh", folder / "install.sh", tmp_path / "venv", PYTHON=sys.executable)
        assert done.returncode == 0, done.stderr
    assert run(tmp_path / "venv" / "bin" / "rigbus", "version").returncode == 0


def test_a_damaged_wheel_is_named_before_anything_is_installed(bundle, tmp_path):
    folder, _said = bundle
    wheel = next((folder / "wheels").glob("click-*.whl"))
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:-1])
    try:
        done = run("sh", folder / "install.sh", tmp_path / "venv", PYTHON=sys.executable)
    finally:
        wheel.write_bytes(whole)
    assert done.returncode != 0
    assert wheel.name in done.stderr
    assert "copy it again" in done.stderr
    assert not (tmp_path / "venv").exists()
