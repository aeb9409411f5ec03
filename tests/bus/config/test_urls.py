"""Addresses for people and logs: whatever somebody has written into one, no key comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigbus.bus.config.settings import load
from rigbus.bus.config.urls import shown_url
from rigbus.bus.errors import ConfigError
from rigbus.tools.cli import run

SECRET = "sk-s3cret"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://host:8000/v1", "http://host:8000/v1"),
        ("https://host/v1?key=sk-s3cret", "https://host/v1?key=…"),
        ("https://host/v1?sk-s3cret", "https://host/v1?…"),
        ("https://host/v1?a=1&key=sk-s3cret&", "https://host/v1?a=…&key=…&"),
        ("https://host/v1#sk-s3cret", "https://host/v1#…"),
        ("https://host/v1?a=b#sk-s3cret", "https://host/v1?a=…#…"),
        ("https://me:sk-s3cret@host/v1", "https://…@host/v1"),
        ("https://me:sk-s3cret/with?odd#signs@host/v1", "https://…@host/v1"),
        ("me:sk-s3cret@host/v1?key=sk-s3cret", "…@host/v1?key=…"),
        ("", ""),
    ],
)
def test_what_may_be_a_key_is_hidden_and_the_rest_stays(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@given(st.text(alphabet="ab:/?#&=@[]", max_size=20), st.text(alphabet="ab:/?#&=[]", max_size=10))
def test_neither_password_nor_value_comes_through_whatever_stands_around(before: str, after: str) -> None:
    assert "S" not in shown_url(f"https://{before}:S{after}@host/v1")
    assert "S" not in shown_url(f"https://host/v1?key=S{after.replace('&', '')}")


def test_the_settings_are_shown_without_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rigbus.toml"
    file.write_text(f'[models.far]\nurl = "https://host/v1?key={SECRET}"\n')
    for more in ([], ["--json"]):
        assert run(["config", "show", "--config", str(file), "--state", str(tmp_path / "s"), *more]) == 0
        said = capsys.readouterr()
        assert "https://host/v1?key=…" in said.out
        assert SECRET not in said.out + said.err
    (row,) = (r for r in load(config=file).show() if r.name == "models.far.url")
    assert row.value == "https://host/v1?key=…"
    settings = json.loads(json.dumps(load(config=file).settings.model_dump(mode="json")))
    assert SECRET in settings["models"]["far"]["url"], "what the rig works with is whole"


@pytest.mark.parametrize(
    "url", [f"https://me:{SECRET}@host/v1", f"me:{SECRET}@host", f"https:/host?k={SECRET}", f"http://[broken/v1?key={SECRET}"]
)  # fmt: skip
def test_an_address_that_is_refused_is_not_repeated_with_its_key(tmp_path: Path, url: str) -> None:
    file = tmp_path / "rigbus.toml"
    file.write_text(f'[models.far]\nurl = "{url}"\n')
    with pytest.raises(ConfigError, match=r"models\.far\.url") as bad:
        load(config=file)
    assert SECRET not in str(bad.value)
