"""The scripts of the example with a model: the same texts each time, and a report in which a model's words stay words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "plans" / "examples" / "docstring_digest" / "scripts"


def run(script: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def choose(out: Path, count: object = 4) -> dict[str, Any]:
    done = run("choose.py", "--count", str(count), "--out", out)
    assert done.returncode == 0, done.stderr
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return manifest


def answer(batch: Path, id_: str, summary: str, **label: object) -> None:
    """What the tasks describe and classify would have left."""
    for folder in ("summaries", "labels"):
        (batch / folder).mkdir(exist_ok=True)
    whole = {"topic": "text", "level": "expert", "traits": ["reads", "reads"], "clear": 4, **label}
    (batch / "summaries" / f"{id_}.txt").write_text(summary)
    (batch / "labels" / f"{id_}.json").write_text(json.dumps(whole))


def test_the_same_real_docstrings_are_chosen_each_time(tmp_path: Path) -> None:
    first, second = choose(tmp_path / "a"), choose(tmp_path / "b")
    assert first == second
    assert len({item["module"] for item in first["items"]}) == 4
    for item in first["items"]:
        text = (tmp_path / "a" / "texts" / f"{item['id']}.txt").read_text()
        assert len(text) == item["chars"] + 1
        assert 160 <= item["chars"] <= 900


@pytest.mark.parametrize("count", ["0", "-1", "many", "501", "1.5", ""])
def test_a_count_that_is_none_is_refused(tmp_path: Path, count: str) -> None:
    done = run("choose.py", f"--count={count}", "--out", tmp_path)
    assert done.returncode == 1
    assert "set a whole number from 1 to 500" in done.stderr


def test_what_a_model_writes_cannot_become_a_part_of_the_page(tmp_path: Path) -> None:
    items = choose(tmp_path)["items"]
    answer(tmp_path, items[0]["id"], "fine\n\n# A heading\n<script>x</script> [a](b)\x1b[31m")
    answer(tmp_path, items[1]["id"], "\n \n")
    answer(tmp_path, items[2]["id"], "two words", topic="numbers", clear=1)
    assert run("report.py", "--batch", tmp_path).returncode == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["topics"] == {"numbers": 1, "text": 1}
    assert report["mean_clear"] == 2.5
    assert report["missing"] == [
        {"name": items[1]["name"], "lacks": "a description"},
        {"name": items[3]["name"], "lacks": "a description"},
    ]
    page = (tmp_path / "report.md").read_text()
    assert "fine \\# A heading \\<script\\>x\\</script\\> \\[a\\]\\(b\\)" in page
    assert "\x1b" not in page
    assert page.count("\n## ") == 3
    assert "*text, expert: reads*" in page


def test_a_report_without_a_list_names_the_task_to_run_again(tmp_path: Path) -> None:
    done = run("report.py", "--batch", tmp_path)
    assert done.returncode == 1
    assert "run the task choose again" in done.stderr
