"""The journal of drops on a disk that fails for a moment: nothing of it is given up for that."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from rigbus.bridge.folder.intake.journal import Journal


def test_an_entry_that_cannot_be_read_now_is_there_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "incoming")
    journal.open()
    journal.enter("d1", {"drop_id": "d1", "name": "p"})
    with monkeypatch.context() as context:

        def refuse(self: Path) -> bytes:
            raise OSError(errno.EIO, "Input/output error", str(self))

        context.setattr(Path, "read_bytes", refuse)
        assert journal.entries() == {} and journal.unread
    assert journal.entries() == {"d1": {"drop_id": "d1", "name": "p"}} and not journal.unread


def test_a_damaged_entry_is_put_aside(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "incoming")
    journal.open()
    (tmp_path / "incoming/d1.json").write_text("{")
    assert journal.entries() == {}
    assert [p.name for p in (tmp_path / "incoming").iterdir()] == ["d1.damaged"]
