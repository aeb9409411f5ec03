"""The catalogue: from settings, found by what a task asks for, probed with real files, and over the bus."""

from __future__ import annotations

import msgpack
import pytest

from rigbus.agents.models.catalogue.catalogue import Card, Catalogue, Entry
from rigbus.agents.models.catalogue.entries import estimate, key_of
from rigbus.agents.models.catalogue.peaks import remember_peak
from rigbus.bus.config.settings import load
from rigbus.bus.errors import BadFrame, ConfigError, DefinitionError
from rigbus.bus.paths import profiles

from .. import gguf_files as g

TEXT = """
worker_gpus = ["1", "2"]
[models.small]
path = "small.gguf"
ctx = 4096
[models.large]
path = "large.gguf"
tier = 3
split = ["1", "2"]
tensor_split = [3, 1]
[models.judge]
path = "judge.gguf"
role = "brain"
tier = 4
split = ["0", "3"]
[models.cloud]
url = "https://models.example/v1"
remote_model = "huge:70b"
tier = 5
api_key_env = "THE_KEY"
[gpus.1]
link_mb_per_s = 250
pcie_group = "switch"
[gpus.2]
link_mb_per_s = 500
"""


@pytest.fixture
def catalogue(tmp_path) -> Catalogue:
    return Catalogue.from_settings(settings(tmp_path, TEXT))


def settings(folder, text, **flags):
    file = folder / "rigbus.toml"
    file.write_text(text)
    return load(flags, file).settings.model_dump(mode="json")


def test_entries_come_from_the_tables(catalogue, tmp_path):
    small, large, judge, cloud = catalogue
    assert (small.path, small.placement, small.split, small.shares()) == (
        str(tmp_path / "small.gguf"),
        "single_gpu",
        (),
        (1.0,),
    )
    assert (large.placement, large.split, large.shares()) == ("split_gpu", ("1", "2"), (0.75, 0.25))
    assert (judge.role, judge.shares()) == ("brain", (0.5, 0.5))
    assert (cloud.local, cloud.remote_model, cloud.api_key_env) == (False, "huge:70b", "THE_KEY")
    assert (small.vram_mb, small.vram_source) == (0, "unknown")
    assert small.load_options().ctx == 4096
    with pytest.raises(DefinitionError, match="nothing to load"):
        cloud.load_options()


def test_the_brains_model_is_split_over_the_brains_cards(tmp_path):
    text = 'brain_gpus = [0, 3]\n[models.j]\npath = "j.gguf"\nrole = "brain"\n'
    (entry,) = Catalogue.from_settings(settings(tmp_path, text))
    assert (entry.placement, entry.split) == ("split_gpu", ("0", "3"))
    (entry,) = Catalogue.from_settings(settings(tmp_path, text + 'placement = "single_gpu"\n'))
    assert (entry.placement, entry.split) == ("single_gpu", ())


def test_a_model_of_the_command_line_is_a_catalogue_of_one_and_the_default(tmp_path):
    alone = Catalogue.from_settings(settings(tmp_path, "", model=tmp_path / "My model.gguf"))
    assert [e.name for e in alone] == ["My model"] == [alone.default]
    assert alone.entries["My model"].path == str(tmp_path / "My model.gguf")
    beside = Catalogue.from_settings(settings(tmp_path, TEXT, model=tmp_path / "other.gguf"))
    assert (beside.default, len(beside.entries)) == ("other", 5)
    same = Catalogue.from_settings(settings(tmp_path, TEXT, model=tmp_path / "large.gguf"))
    assert (same.default, len(same.entries)) == ("large", 4)
    with pytest.raises(ConfigError, match=r"\[models\.small\] is another model; rename"):
        Catalogue.from_settings(settings(tmp_path, TEXT, model=tmp_path / "sub" / "small.gguf"))


def test_an_empty_catalogue_is_false():
    assert not Catalogue.from_settings({})


# -- files ---------------------------------------------------------------------------------------------------


def test_files_add_size_memory_and_what_is_wrong(tmp_path, catalogue):
    g.write_llama(tmp_path / "small.gguf")
    g.write_llama(tmp_path / "large.gguf")
    (tmp_path / "judge.gguf").write_bytes(b"PK\x03\x04")
    small, large, judge, cloud = catalogue.probed(tmp_path)
    assert small.description == "llama 4.3M F16"
    assert 0 < small.size_bytes < (tmp_path / "small.gguf").stat().st_size
    assert (small.vram_source, small.vram_mb) == ("estimate", estimate(small).total_mb)
    assert large.vram_mb > small.vram_mb, "each card computes in room of its own"
    assert "judge.gguf: at byte 0: no GGUF file" in judge.problem
    assert (cloud.problem, cloud.vram_source) == ("", "unknown")
    with pytest.raises(DefinitionError, match="its memory is its server's"):
        estimate(cloud)


def test_the_configuration_is_believed_before_a_measure_and_a_measure_before_the_estimate(tmp_path):
    g.write_llama(tmp_path / "m.gguf")
    text = '[models.m]\npath = "m.gguf"\n'
    plain = Catalogue.from_settings(settings(tmp_path, text))
    remember_peak(tmp_path, key_of(plain.entries["m"]), 77, at=0.0, model="m")
    measured = plain.probed(tmp_path).entries["m"]
    assert (measured.vram_mb, measured.vram_source) == (77, "measured")
    assert plain.probed().entries["m"].vram_source == "estimate", "without a state folder nothing is known"
    other = Catalogue.from_settings(settings(tmp_path, text + "ctx = 2048\n")).probed(tmp_path).entries["m"]
    assert other.vram_source == "estimate", "measured with another context"
    given = Catalogue.from_settings(settings(tmp_path, text + "vram_mb = 99\n")).probed(tmp_path).entries["m"]
    assert (given.vram_mb, given.vram_source) == (99, "config")


def test_a_load_costs_its_bytes_over_the_link(catalogue):
    small, _large, _judge, cloud = catalogue
    entry = Entry(name="m", path="/m", size_bytes=1000 << 20)
    assert catalogue.load_s(entry, "1") == 4.0
    assert catalogue.load_s(entry, "7") == pytest.approx(1 / 3), (
        "a card that is not configured has the default"
    )
    assert catalogue.load_s(entry, "1", "2") == 3.0
    pair = Entry(name="m", path="/m", size_bytes=1000 << 20, split=("1", "2"), tensor_split=(3, 1))
    assert catalogue.load_s(pair) == 750 / 250 + 250 / 500
    assert catalogue.load_s(small) == catalogue.load_s(cloud, "1") == 0.0
    assert catalogue.card("1").pcie_group == "switch"


def test_a_card_is_found_by_index_and_by_uuid(catalogue):
    both = catalogue.named_both_ways({"1": "GPU-1111", "0": "GPU-0000"})
    assert both.card("GPU-1111").link_mb_per_s == both.card("1").link_mb_per_s == 250
    assert both.card("GPU-0000") == Card(name="GPU-0000")


# -- over the bus --------------------------------------------------------------------------------------------


def test_a_catalogue_survives_the_bus(tmp_path, catalogue):
    g.write_llama(tmp_path / "small.gguf")
    whole = catalogue.probed()
    packed = msgpack.packb(whole.to_map())
    assert Catalogue.from_map(msgpack.unpackb(packed)) == whole
    assert b"THE_KEY" in packed, "where a key is kept is said, the key itself is nobody's"
    profile = Catalogue.from_settings(load(config=profiles()["seed-5x1060"]).settings.model_dump(mode="json"))
    assert Catalogue.from_map(profile.to_map()) == profile
    assert "worker-7b" in profile.entries
    assert [e.split for e in profile if e.role == "brain"] == [("0", "3")]


def test_keys_of_a_newer_rigbus_are_left_out():
    assert Entry.from_map({"name": "m", "path": "/m", "colour": "red"}) == Entry(name="m", path="/m")


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"name": 3, "path": "/m"},
        {"name": "m"},
        {"name": "m", "path": "/m", "url": "http://h"},
        {"name": "m", "path": "/m", "tier": "1"},
        {"name": "m", "path": "/m", "tier": True},
        {"name": "m", "path": "/m", "pinned": 1},
        {"name": "m", "path": "/m", "split": "03"},
        {"name": "m", "path": "/m", "split": [0, 3]},
        {"name": "m", "path": "/m", "role": "boss"},
        {"name": "m", "path": "/m", "placement": "both"},
        {"name": "m", "path": "/m", "split": ["0", "1"], "tensor_split": [1.0]},
        {"name": "m", "path": "/m", "split": ["0", "1"], "tensor_split": [1.0, -1.0]},
        {"name": "m", "path": "/m", "split": ["0", "1"], "tensor_split": [1.0, float("nan")]},
    ],
)
def test_a_map_that_is_no_entry_is_refused(value):
    with pytest.raises(BadFrame):
        Entry.from_map(value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"models": {}, "cards": []},
        {"models": [], "cards": [], "default": 7},
        {"models": [], "cards": [{"name": "0", "link_mb_per_s": 0}]},
        {"models": [], "cards": [{"name": "0", "link_mb_per_s": float("nan")}]},
        {"models": [], "cards": [{"name": "0", "vram_mb": "6 GB"}]},
        {"models": [{"name": "m"}], "cards": []},
    ],
)
def test_a_map_that_is_no_catalogue_is_refused(value):
    with pytest.raises(BadFrame):
        Catalogue.from_map(value)


def test_a_files_stem_and_a_servers_name_mean_the_model_where_they_mean_no_other(tmp_path):
    text = (
        '[models.a]\npath = "x/a.gguf"\n[models.b]\npath = "y/qwen.gguf"\n[models.c]\npath = "z/same.gguf"\n'
        '[models.d]\npath = "w/same.gguf"\n[models.e]\npath = "w/a.gguf"\n'
        '[models.f]\nurl = "http://far/v1"\nremote_model = "huge:70b"\n[models.g]\nurl = "http://far/v1"\n'
    )
    catalogue = Catalogue.from_settings(settings(tmp_path, text))
    also = {entry.name: catalogue.also(entry) for entry in catalogue}
    assert also == {"a": (), "b": ("qwen",), "c": (), "d": (), "e": (), "f": ("huge:70b",), "g": ()}
