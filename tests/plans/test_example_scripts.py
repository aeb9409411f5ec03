"""The scripts of the example plan, run as a rig runs them: real processes over real, partly hostile files."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "plans" / "examples" / "code_census"
VOID = {"meta", "br", "link", "img", "hr", "input"}

PACKAGE = '''"""A package."""
import os
from . import helper


def choose(a):
    """Choose."""
    # a comment
    if a and a > 1 or a < 0:
        return [x for x in a if x]

    def inner():
        return 1
    return inner
'''
HELPER = (
    "import pkg\n\n\nclass Kept:\n    def first(self): return 1\n\n    def _hidden(self):\n        pass\n"
)
FILES: dict[str, bytes] = {
    "pkg/__init__.py": PACKAGE.encode(),
    "pkg/helper.py": HELPER.encode(),
    "broken.py": b"def f(:\n    pass\n# why\n\n",
    "latin.py": b'# caf\xe9\nx = "1"\n',
    "late_latin.py": b'x = 1\ny = 2\nz = "\xe9"\n',
    "empty.py": b"",
    "nul.py": b"x = 1\x00\n",
    "deep.py": b"x = " + b"-" * 50_000 + b"1\n",
    "unknown_codec.py": b"# coding: no-such-codec\nx = 1\n",
    "a b; touch pwned; '$(touch pwned).py": b"import pkg.helper\n",
    "<script>alert(1)<\n.py": b"y = 1\n",
    "-rf.py": b"z = 1\n",
    "tests/test_it.py": b"assert True\n",
    ".hidden/secret.py": b"x = 1\n",
    "notes.txt": b"not code",
}


def run(script: str, *args: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "scripts" / script), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode == 0) is ok, done.stderr
    return done


def scan(source: Path, batch: Path, limit: int = 100) -> list[dict[str, Any]]:
    run("scan.py", "--source", str(source), "--limit", str(limit), "--out", str(batch))
    items: list[dict[str, Any]] = load(batch / "manifest.json")["items"]
    return items


def measure(item: dict[str, Any], batch: Path) -> subprocess.CompletedProcess[str]:
    return run("measure.py", "--out", str(batch / "measures"), "--file", item["path"], "--id", item["id"])


def aggregate(batch: Path) -> dict[str, Any]:
    run("aggregate.py", "--batch", str(batch))
    return load(batch / "report.json")


def load(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_bytes())
    return value


def make(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make(tmp_path_factory.mktemp("source"), FILES)
    os.mkfifo(folder / "fifo.py")
    (folder / "link.py").symlink_to("/etc/passwd")
    return folder


@pytest.fixture(scope="module")
def batch(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over the hostile folder, with a generated line that is hostile too."""
    folder = tmp_path_factory.mktemp("batch")
    for item in scan(source, folder):
        measure(item, folder)
    (folder / "generated.txt").write_text("\n  A <b>line</b> & \x1b[31mmore\nnot this\n", encoding="utf-8")
    aggregate(folder)
    return folder


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {module["name"]: module for module in report["modules"]}


def test_the_report_holds_every_real_file_and_nothing_else(batch: Path) -> None:
    report = load(batch / "report.json")
    expected = {n for n in FILES if n.endswith(".py") and not n.startswith((".hidden", "tests/"))}
    assert set(by_name(report)) == expected
    assert report["selection"]["skipped"] == {"links and special files": 2, "test folders": 1}


def test_the_numbers_of_a_known_file_are_right(batch: Path) -> None:
    module = by_name(load(batch / "report.json"))["pkg/__init__.py"]
    lines = {key: module[key] for key in ("lines", "code", "doc", "comment", "blank")}
    assert lines == {"lines": 14, "code": 8, "doc": 2, "comment": 1, "blank": 3}
    assert (module["functions"], module["classes"]) == (2, 0)
    # choose: 1, and if, or, and, the comprehension and its condition; inner counts 1 by itself.
    assert module["heaviest"] == {"name": "choose", "line": 6, "lines": 9, "complexity": 6}
    assert module["complexity"] == 7
    assert (module["documented"], module["documentable"]) == (2, 2)
    assert module["imported_by"] == 1


def test_private_names_need_no_docstring(batch: Path) -> None:
    module = by_name(load(batch / "report.json"))["pkg/helper.py"]
    assert (module["documented"], module["documentable"]) == (0, 3)  # the module, Kept, Kept.first
    assert (module["functions"], module["classes"]) == (2, 1)


def test_imports_are_resolved_among_the_files(batch: Path) -> None:
    imports = load(batch / "report.json")["imports"]
    evil = next(i["id"] for i in load(batch / "manifest.json")["items"] if i["name"].startswith("a b"))
    assert sorted(imports["edges"]) == sorted(
        [[evil, "pkg.helper"], ["pkg", "pkg.helper"], ["pkg.helper", "pkg"]]
    )
    assert imports["outside"] == [{"files": 1, "name": "os"}]


def test_files_that_are_no_python_are_named_and_still_counted(batch: Path) -> None:
    report = load(batch / "report.json")
    problems = {row["name"]: row["problem"] for row in report["problems"]}
    assert set(problems) == {
        "broken.py",
        "deep.py",
        "latin.py",
        "late_latin.py",
        "nul.py",
        "unknown_codec.py",
    }
    assert problems["deep.py"] == "does not parse: nested too deeply"
    assert problems["broken.py"].startswith("does not parse: line 1")
    assert "not UTF-8" in problems["latin.py"]
    assert "byte 0xe9 at offset 17" in problems["late_latin.py"]
    broken = by_name(report)["broken.py"]
    assert (broken["lines"], broken["code"], broken["comment"], broken["blank"]) == (4, 2, 1, 1)
    assert by_name(report)["empty.py"]["lines"] == 0


def test_the_line_kinds_add_up(batch: Path) -> None:
    report = load(batch / "report.json")
    for row in [*report["modules"], report["totals"]]:
        assert row["lines"] == row["code"] + row["doc"] + row["comment"] + row["blank"]
    assert report["totals"]["files"] == len(report["modules"])
    assert report["totals"]["code"] == sum(package["code"] for package in report["packages"])


def test_ids_are_plain_and_unique_whatever_the_names(batch: Path) -> None:
    ids = [item["id"] for item in load(batch / "manifest.json")["items"]]
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", one) for one in ids)
    assert len({one.lower() for one in ids}) == len(ids)
    assert sorted(path.name for path in (batch / "measures").iterdir()) == sorted(
        f"{one}.json" for one in ids
    )


def test_names_that_differ_in_case_or_spelling_only_get_ids_of_their_own(tmp_path: Path) -> None:
    files = {"a/b.py": b"", "a.b.py": b"", "A/B.py": b"", "a/b/__init__.py": b""}
    items = scan(make(tmp_path / "s", files), tmp_path / "batch")
    assert len({item["id"].lower() for item in items}) == len(files)


def test_a_second_run_over_the_same_folder_is_identical(source: Path, batch: Path, tmp_path: Path) -> None:
    again = tmp_path / batch.name  # the batch's name is part of the page
    for item in reversed(scan(source, again)):
        measure(item, again)
    shutil.copy(batch / "generated.txt", again)
    aggregate(again)
    for name in ("manifest.json", "report.json", "report.html"):
        assert (again / name).read_bytes() == (batch / name).read_bytes(), name


def test_running_everything_again_in_the_same_batch_changes_nothing(source: Path, tmp_path: Path) -> None:
    items = scan(source, tmp_path)[:3]
    (tmp_path / "manifest.json").write_text(json.dumps({**load(tmp_path / "manifest.json"), "items": items}))
    for item in items:
        measure(item, tmp_path)
    first = aggregate(tmp_path)
    for item in items:
        assert "measured before" in measure(item, tmp_path).stdout
    assert aggregate(tmp_path) == first


def test_an_edited_file_is_measured_anew(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", {"one.py": b"x = 1\n"})
    (item,) = scan(folder, tmp_path)
    measure(item, tmp_path)
    (folder / "one.py").write_bytes(b"x = 1\ny = 2\n")
    measure(item, tmp_path)
    assert load(tmp_path / "measures" / "one.json")["code"] == 2


#: A script with its arguments, ended by SIGKILL when all is written and the name not yet given.
KILLED = """
import os, runpy, signal, sys
os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_killed_measure_leaves_nothing_that_a_second_run_minds(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", {"big.py": b"def f(a):\n    return a\n" * 300})
    (item,) = scan(folder, tmp_path)
    script, measures = EXAMPLE / "scripts" / "measure.py", tmp_path / "measures"
    words = [script, "--out", measures, "--file", item["path"], "--id", item["id"]]
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, words)], timeout=30, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = measures.iterdir()
    assert left.name.startswith(".big.json.")
    # A torn file as an older tool could have left it.
    make(measures, {"big.json": b'{"schema": "code_ce'})
    measure(item, tmp_path)
    assert aggregate(tmp_path)["totals"]["functions"] == 300
    assert [path.name for path in measures.iterdir()] == ["big.json"]


def test_a_file_that_vanished_after_the_scan_is_a_finding(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", {"gone.py": b"x = 1\n", "pipe.py": b"x = 1\n"})
    items = scan(folder, tmp_path)
    (folder / "gone.py").unlink()
    (folder / "pipe.py").unlink()
    os.mkfifo(folder / "pipe.py")
    for item in items:
        measure(item, tmp_path)
    problems = aggregate(tmp_path)["problems"]
    assert [row["name"] for row in problems] == ["gone.py", "pipe.py"]
    assert problems[1]["problem"] == "cannot be read: not a regular file"


def test_aggregate_refuses_to_report_on_a_part(tmp_path: Path) -> None:
    items = scan(make(tmp_path / "s", {"a.py": b"", "b.py": b""}), tmp_path)
    measure(items[0], tmp_path)
    done = run("aggregate.py", "--batch", str(tmp_path), ok=False)
    assert "b.json: missing" in done.stderr
    assert not (tmp_path / "report.json").exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems refuse such a name")
def test_a_name_that_is_no_text_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", {"a.py": b"x = 1\n"})
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff.py"))).write_bytes(b"x = 1\n")
    assert [item["name"] for item in scan(folder, tmp_path)] == ["a.py"]
    assert load(tmp_path / "manifest.json")["skipped"]["names that are not UTF-8"] == 1


def test_the_limit_takes_the_largest_files_in_a_fixed_order(tmp_path: Path) -> None:
    files = {f"f{n}.py": b"#" * (n % 3) + b"\n" for n in range(9)}
    items = scan(make(tmp_path / "s", files), tmp_path, limit=4)
    assert [item["name"] for item in items] == ["f1.py", "f2.py", "f5.py", "f8.py"]


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"--source": "/no/such/folder"}, "no such folder"),
        ({"--source": "~nobody-here/x"}, "no such folder"),
        ({"--limit": "0"}, "not a number of files"),
        ({"--limit": "many; rm -rf x"}, "not a number of files"),
        ({"--limit": "９"}, "not a number of files"),
    ],
)
def test_bad_inputs_are_refused_with_the_fix(settings: dict[str, str], word: str, tmp_path: Path) -> None:
    given = {"--source": str(tmp_path), "--limit": "5", "--out": str(tmp_path / "out"), **settings}
    done = run("scan.py", *(part for pair in given.items() for part in pair), ok=False)
    assert done.stderr.startswith("scan: ")
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_python_is_refused(tmp_path: Path) -> None:
    done = run("scan.py", "--source", str(tmp_path), "--limit", "5", "--out", str(tmp_path / "out"), ok=False)
    assert "no Python file there" in done.stderr


def test_an_id_that_is_a_path_is_refused(tmp_path: Path) -> None:
    done = run("measure.py", "--out", str(tmp_path), "--file", __file__, "--id", "../evil", ok=False)
    assert "not a plain name" in done.stderr


def test_the_standard_library_is_the_default_source(tmp_path: Path) -> None:
    run("scan.py", "--source", "stdlib", "--limit", "5", "--out", str(tmp_path))
    manifest = load(tmp_path / "manifest.json")
    assert len(manifest["items"]) == 5
    assert manifest["found"]["files"] > 100


class Page(HTMLParser):
    """Checks that every element is closed in order, and gathers tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes.extend(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes.extend(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_well_formed_and_fetches_nothing(batch: Path) -> None:
    text = (batch / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert "svg" in page.seen
    assert not {"script", "link", "img", "iframe", "object", "a"} & set(page.seen)
    assert not [name for name, _ in page.attributes if name in {"src", "href"} or name.startswith("on")]
    assert not re.search(r"https?://|//[a-z]|@import|url\(", text)


def test_hostile_text_is_shown_and_never_obeyed(batch: Path) -> None:
    text = (batch / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert "<script>alert(1)<\\n.py" in page.text
    assert "<b>line" not in text
    assert "A <b>line</b> & \\x1b[31mmore" in page.text
    assert "not this" not in page.text
    assert "one generated line" in page.text
    assert "\x1b" not in text


def test_pictures_have_a_title_and_a_description(batch: Path) -> None:
    text = (batch / "report.html").read_text(encoding="utf-8")
    pictures = re.findall(r'<svg class="(\w+)"[^>]* role="img" aria-labelledby="\1-t \1-d">', text)
    assert pictures
    for name in pictures:
        assert f'<title id="{name}-t">' in text
        assert f'<desc id="{name}-d">' in text


def test_scripts_write_nothing_beside_themselves(batch: Path) -> None:
    assert batch.is_dir()
    assert not list(EXAMPLE.rglob("__pycache__"))
