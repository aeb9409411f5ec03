"""What `rigbus doctor` says of models, row by row and on real files; and `rigbus config profile`."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest
from helpers import ROOT, short_folder

from rigbus.agents.models.catalogue.entries import Entry
from rigbus.agents.models.gguf.vram import Estimate
from rigbus.bus.config.settings import load
from rigbus.bus.paths import profiles
from rigbus.tools.doctor_checks import models
from rigbus.tools.doctor_checks.models import CardRoom, CatalogueFacts, ModelFacts

g = runpy.run_path(str(ROOT / "tests/agents/models/gguf_files.py"))
ROW = ["GTX 1060", "580.1", "6.1", "1", "6144 MiB"]
GUESS = Estimate(weights_mb=4000, kv_mb=1000, compute_mb=300, ctx=8192, token_kb=128)
ENTRY = Entry(name="m", path="/m.gguf", vram_mb=5300, vram_source="estimate", description="llama 7.2B Q4_K_M")
SIX, FOUR = CardRoom("1", 6144, 300), CardRoom("2", 4096, 300)


def one(facts: CatalogueFacts):
    (found,) = models.judge(facts)
    return found


@pytest.mark.parametrize(
    ("entry", "cards", "status", "value", "fix"),
    [
        ({}, [SIX], "ok", "llama 7.2B Q4_K_M, 5300 MB a card (estimate) for 8192 tokens", ""),
        ({}, [SIX, FOUR], "warn", "card 2 has room for 3796 MB", "smaller quantization"),
        ({}, [CardRoom("1", 5500, 300)], "fail", "card 1 has room for 5200 MB", "ctx = 7168, or a smaller"),
        ({"vram_mb": 6200, "vram_source": "measured"}, [SIX], "fail", "6200 MB a card (measured)", "smaller"),
        ({"vram_mb": 6000, "vram_source": "measured"}, [SIX], "ok", "6000 MB a card (measured)", ""),
        ({"vram_mb": 6000, "vram_source": "config"}, [SIX], "fail", "card 1 has room for 5844 MB", "smaller"),
        (
            {"vram_mb": 5000, "vram_source": "config"},
            [CardRoom("1", 5400, 300)],
            "ok",
            "5000 MB a card (config)",
            "",
        ),
        ({"split": ("1", "2")}, [SIX, FOUR], "ok", "2800 MB a card", ""),
        ({"split": ("1", "2"), "tensor_split": (1, 4)}, [SIX, FOUR], "fail", "card 2 has room", "smaller"),
        ({}, [CardRoom("1")], "ok", "5400 MB of this machine's memory for 8192 tokens; no card is known", ""),
        (
            {"problem": "model /m.gguf: at byte 0: no GGUF file; give a .gguf file"},
            [],
            "fail",
            "at byte 0",
            "give a .gguf",
        ),
    ],
)
def test_each_model_is_judged_by_its_cards(entry, cards, status, value, fix):
    data = {**{f: getattr(ENTRY, f) for f in ENTRY.__slots__}, **entry}
    facts = ModelFacts(Entry(**data), GUESS, 5400, cards)
    found = one(CatalogueFacts([facts], memory_mb=8000))
    assert (found.check, found.status) == ("m", status), found
    assert value in found.value
    assert fix in found.fix
    assert bool(found.fix) == (status not in ("ok", "info"))


def test_a_machine_without_cards_needs_the_memory_itself():
    facts = ModelFacts(ENTRY, GUESS, 5400, [])
    found = one(CatalogueFacts([facts], memory_mb=4096))
    assert (found.status, "which has 4096 MB" in found.value) == ("fail", True)


def test_a_model_behind_a_url_is_not_asked_after():
    entry = Entry(name="m", url="http://h/v1", remote_model="big:70b")
    found = one(CatalogueFacts([ModelFacts(entry)]))
    assert (found.status, found.value) == ("ok", "behind http://h/v1, as big:70b")


def test_a_key_in_a_url_is_not_shown_and_the_url_is_not_used():
    entry = Entry(name="m", url="http://h/v1?key=sk-secret", remote_model="big")
    found = one(CatalogueFacts([ModelFacts(entry)]))
    assert (found.status, found.value) == ("fail", "behind http://h/v1?key=…, as big: such a url is not used")
    assert "api_key_env" in found.fix


def test_no_model_is_said():
    assert one(CatalogueFacts()).status == "info"


def test_cards_that_llama_cpp_cannot_use_are_a_warning():
    facts = ModelFacts(ENTRY, GUESS, 5400, [SIX])
    found = {f.check: f for f in models.judge(CatalogueFacts([facts], cuda=False, any_card=True))}
    assert found["llama cuda"].status == "warn"
    assert "GGML_CUDA=on" in found["llama cuda"].fix
    for calm in (CatalogueFacts([facts], cuda=None, any_card=True), CatalogueFacts([facts], cuda=False)):
        assert "llama cuda" not in {f.check for f in models.judge(calm)}


def test_real_files_are_probed(tmp_path):
    """One is well, one cut short, one there by two paths; the driver tells of one small card."""
    g["write_llama"](tmp_path / "good.gguf")
    g["write_llama"](tmp_path / "cut.gguf")
    os.truncate(tmp_path / "cut.gguf", 100_000)
    (tmp_path / "again.gguf").symlink_to(tmp_path / "good.gguf")
    names = ("good", "cut", "again", "none")
    text = "".join(f'[models.{n}]\npath = "{n}.gguf"\n' for n in names)
    (tmp_path / "rigbus.toml").write_text(text)
    at = load(config=tmp_path / "rigbus.toml")
    settings = at.settings.model_dump(mode="json")
    rows = [[*ROW[:4], "330 MiB", "GPU-1234abcd-0"]]
    found = {f.check: f for f in models.judge(models.gather(settings, at.warnings, tmp_path, rows))}
    assert [found[n].status for n in names] == ["ok", "fail", "ok", "fail"]
    assert "in the middle of its tensors" in found["cut"].value
    assert "No such file" in found["none"].value
    assert found["same file"].value.startswith("good and again are one file")
    rows = [[*ROW[:4], "310 MiB", "GPU-1234abcd-0"]]
    found = {f.check: f for f in models.judge(models.gather(settings, at.warnings, tmp_path, rows))}
    assert (found["good"].status, "room for 10 MB" in found["good"].value) == ("fail", True)


def test_the_shipped_profile_is_judged_by_its_own_cards(tmp_path):
    settings = load(config=profiles()["seed-5x1060"]).settings.model_dump(mode="json")
    facts = models.gather(settings, (), tmp_path, [ROW] * 5)
    by_name = {m.entry.name: m.cards for m in facts.models}
    assert [c.name for c in by_name["worker-7b"]] == ["1", "2", "4"]
    assert [(c.name, c.room_mb) for c in by_name["brain-14b"]] == [("0", 5844), ("3", 5844)]
    assert facts.notes == ()


def test_a_split_model_is_said_to_want_its_cards_alone_and_what_has_no_other_card_is_named(tmp_path):
    for name in ("wide", "small"):
        g["write_llama"](tmp_path / f"{name}.gguf")
    text = '[models.wide]\npath = "wide.gguf"\nsplit = ["0", "1"]\npinned = {}\n[models.small]\npath = "small.gguf"\n'
    said = {}
    for pinned, cards in (("false", 2), ("true", 3), ("true", 2)):
        (tmp_path / "rigbus.toml").write_text(text.format(pinned))
        settings = load(config=tmp_path / "rigbus.toml").settings.model_dump(mode="json")
        found = list(models.judge(models.gather(settings, (), tmp_path, [ROW] * cards)))
        assert "on cards 0, 1 together, where no other model is then" in next(
            f.value for f in found if f.check == "wide"
        )
        said[pinned, cards] = [f for f in found if f.check == "small" and f.status == "warn"]
    assert not said["false", 2] and not said["true", 3]
    (warned,) = said["true", 2]
    assert warned.value == "it has no card beside wide, which is pinned on cards 0, 1"
    assert warned.fix == "leave wide unpinned, or add a card"


def test_the_verb_says_it_where_a_rig_is(say, monkeypatch):
    with short_folder() as folder:
        monkeypatch.setenv("RIGBUS_SHARED", str(folder))
        g["write_llama"](folder / "m.gguf")
        (folder / "rigbus.toml").write_text('[models.a]\npath = "m.gguf"\n[models.b]\npath = "m.gguf"\n')
        (folder / "state").mkdir()
        said = say("doctor", "--state", folder / "state", "--config", folder / "rigbus.toml", "--json")
    found = {f["check"]: f["status"] for f in said.json["findings"] if f["group"] == "Models"}
    assert found == {"a": "ok", "b": "ok", "configuration": "warn"}


def test_profiles_are_listed_and_printed(say):
    assert say("config", "profile").out.split() == sorted(profiles())
    said = say("config", "profile", "seed-5x1060")
    assert said.out == Path(profiles()["seed-5x1060"]).read_text()
    said = say("config", "profile", "none")
    assert said.code == 3
    assert "seed-5x1060" in said.err


def test_config_show_names_models_and_warnings(say, tmp_path):
    file = tmp_path / "r.toml"
    file.write_text('[models.a]\npath = "m.gguf"\n[models.b]\npath = "m.gguf"\n[gpus.0]\nvram_mb = 6144\n')
    said = say("config", "show", "--config", file, "--json").json
    rows = {r["name"]: r["value"] for r in said["settings"]}
    assert (rows["models.a.path"], rows["gpus.0.vram_mb"]) == (str(tmp_path / "m.gguf"), 6144)
    assert "a and b are one file" in said["warnings"][0]
    assert "warning: the models a and b are one file" in say("config", "show", "--config", file).err


def test_an_architecture_that_llama_cpp_does_not_know_fails(tmp_path):
    library = tmp_path / "libllama.so"
    library.write_bytes(b"\x7fELF\0llama\0modern-bert\0")
    assert models.knows("llama", tmp_path)
    assert models.knows("bert", tmp_path), "linkers share the ends of texts"
    assert not models.knows("ogre", tmp_path)
    assert models.knows("ogre", tmp_path / "nowhere"), "nobody can say"
    found = one(CatalogueFacts([ModelFacts(ENTRY, GUESS, 5400, [SIX], unknown="ogre")], memory_mb=1 << 20))
    assert found.status == "fail"
    assert "'ogre' is none that the installed llama.cpp knows" in found.value
    assert "update llama-cpp-python" in found.fix


@pytest.mark.llm
def test_the_installed_llama_cpp_knows_what_it_knows():
    assert [models.knows(name) for name in ("llama", "qwen3", "bert", "ogre!")] == [True, True, True, False]
