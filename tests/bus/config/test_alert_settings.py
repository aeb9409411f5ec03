"""The tables ``[alerts]`` and ``[notify]``: what is wrong is named with its place and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from rigbus.bus.alerting.rules import Policy, Severity
from rigbus.bus.config.settings import load
from rigbus.bus.errors import ConfigError

HUE = '[notify.sinks.room]\ntype = "hue"\nbridge = "192.168.1.20"\ngroup = "Office"\nkey_file = "k"\n'
PIN = "ab" * 32


def config(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "rigbus.toml"
    file.write_text(text)
    return file


def test_rules_as_configured(tmp_path: Path) -> None:
    text = (
        '[alerts]\noff = ["brain-away"]\nhot_c = 70\ncool_c = 65\n[alerts.severity]\ndisk-low = "critical"\n'
    )
    text += "[alerts.raise_after_s]\ndisk-low = 300\n"
    table = load(None, config(tmp_path, text)).settings.model_dump(mode="json")["alerts"]
    policy = Policy.of(table)
    assert policy.rule("brain-away") is None
    rule = policy.rule("disk-low")
    assert rule is not None and (rule.severity, rule.raise_after_s) == (Severity.CRITICAL, 300.0)
    assert policy.hot_c == 70.0


def test_the_defaults_of_both_places_are_the_same(tmp_path: Path) -> None:
    assert Policy.of(load(None, config(tmp_path, "")).settings.model_dump(mode="json")["alerts"]) == Policy()


@pytest.mark.parametrize("written", [PIN, f"sha256:{PIN}", ":".join(["AB"] * 32)])
def test_a_fingerprint_is_taken_as_people_write_it(tmp_path: Path, written: str) -> None:
    file = config(tmp_path, HUE + f'fingerprint = "{written}"\n')
    sink = load(None, file).settings.notify.sinks["room"]
    assert sink.type == "hue" and sink.fingerprint == PIN


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[alerts]\noff = ["brain-awy"]\n', "did you mean 'brain-away'"),
        ("[alerts]\nhot_c = 60\ncool_c = 70\n", "above hot_c"),
        ("[alerts.raise_after_s]\ndisk-low = -1\n", "disk-low"),
        ('[alerts.severity]\ndisk-low = "loud"\n', "disk-low"),
        ("[alerts]\nof = []\n", "did you mean 'off'"),
        (HUE, "fingerprint"),
        (HUE + 'fingerprint = "abc"\n', "64 hex digits"),
        ('[notify.sinks.x]\ntype = "pager"\n', "pager"),
        ('[notify.sinks.x]\ntype = "ntfy"\n', "give topic_file or topic_env"),
        ('[notify.sinks.x]\ntype = "ntfy"\ntopic = "t"\ntopic_env = "T"\n', "keep one"),
        ('[notify.sinks.x]\ntype = "ntfy"\ntopic = "t"\nserver = "ftp://x"\n', "http"),
        ('[notify.sinks.x]\ntype = "webhook"\nurl = "http://u:p@x/"\n', "password"),
        (
            '[notify.sinks.x]\ntype = "webhook"\nurl = "http://x/"\nsecret_env = "the secret"\n',
            "does not belong here",
        ),
        ('[notify.sinks."a/b"]\ntype = "ntfy"\ntopic = "t"\n', "a/b"),
        ("[notify]\npoll_s = 0\n", "poll_s"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"rigbus\.toml") as refused:
        load(None, config(tmp_path, text))
    assert said in str(refused.value)
