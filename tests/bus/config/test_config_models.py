"""The tables about models and cards: what they take, what they refuse and with which words, and the shipped profiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from rigbus.agents.models.protocol import MAX_PARALLEL, PARALLEL, LoadOptions
from rigbus.bus.config.models import Model
from rigbus.bus.config.settings import Loaded, Settings, load
from rigbus.bus.errors import ConfigError
from rigbus.bus.paths import profiles

PAIR = '[models.big]\npath = "b.gguf"\nrole = "brain"\nsplit = [0, "3"]\n'


def loaded(folder: Path, text: str) -> Loaded:
    file = folder / "rigbus.toml"
    file.write_text(text)
    return load(config=file)


def test_a_model_has_the_engines_defaults(tmp_path):
    model = loaded(tmp_path, '[models.small]\npath = "m.gguf"\n').settings.models["small"]
    options = LoadOptions(path="m.gguf", name="small")
    assert (model.ctx, model.gpu_layers, model.threads) == (options.ctx, options.gpu_layers, options.threads)
    assert model.parallel == options.parallel == PARALLEL
    (most,) = [m.le for m in Model.model_fields["parallel"].metadata if hasattr(m, "le")]
    assert most == MAX_PARALLEL
    assert (model.tier, model.role, model.pinned, model.vram_mb, model.split) == (
        1,
        "worker",
        False,
        None,
        [],
    )


def test_every_table_is_read(tmp_path):
    text = (
        'worker_gpus = [1, "GPU-1234abcd-00"]\nshare_gpus = false\n'
        '[models.small]\npath = "m.gguf"\nctx = 2048\ntier = 2\nplacement = "single_gpu"\npinned = true\n'
        "vram_mb = 5000\nmax_tokens = 99\ngpu_layers = 20\nparallel = 4\nthreads = 2\n"
        f"{PAIR}tensor_split = [3, 1.5]\n"
        '[models.cloud]\nurl = "https://models.example/v1"\nremote_model = "big:70b"\napi_key_env = "KEY"\n'
        '[gpus.1]\npcie_group = "switch"\nlink_mb_per_s = 250\nvram_mb = 6144\nreserve_mb = 500\n'
        '[gpus."GPU-1234abcd-00"]\nvram_mb = 8192\n'
        "[thermal]\nwarn_c = 80\ncritical_c = 92\nhysteresis_c = 5\n"
        '[placement]\ndefault_model = "small"\nhot_at_start = 2\nmax_hot = 3\nheat_after_s = 1\n'
        "cool_after_s = 30\nmin_hot_s = 60\n"
    )
    s = loaded(tmp_path, text).settings
    assert s.models["small"].path == tmp_path / "m.gguf"
    assert (s.models["big"].split, s.models["big"].tensor_split) == (["0", "3"], [3.0, 1.5])
    assert s.models["cloud"].url == "https://models.example/v1"
    assert s.worker_gpus == ["1", "GPU-1234abcd-00"]
    assert (s.gpus["1"].link_mb_per_s, s.gpus["GPU-1234abcd-00"].vram_mb) == (250, 8192)
    assert (s.thermal.warn_c, s.placement.max_hot, s.placement.min_hot_s) == (80, 3, 60)


def test_the_defaults_of_heat_and_placement(tmp_path):
    s = Settings()
    assert (s.thermal.warn_c, s.thermal.critical_c, s.thermal.hysteresis_c) == (83, 90, 4)
    p = s.placement
    assert (p.hot_at_start, p.max_hot, p.heat_after_s, p.cool_after_s, p.min_hot_s) == (1, None, 2, 60, 120)


def test_the_former_name_of_ctx_still_works(tmp_path, monkeypatch):
    at = loaded(tmp_path, '[models.a]\npath = "m.gguf"\ncontext = 512\n')
    assert at.settings.models["a"].ctx == 512
    assert {r.name: r.origin for r in at.show()}["models.a.ctx"] == str(tmp_path / "rigbus.toml")
    with pytest.raises(ConfigError, match=r"models\.a\.context: the former name of ctx, which is given too"):
        loaded(tmp_path, '[models.a]\npath = "m.gguf"\ncontext = 512\nctx = 512\n')
    monkeypatch.setenv("RIGBUS_MODELS__A__CONTEXT", "256")
    assert loaded(tmp_path, '[models.a]\npath = "m.gguf"\n').settings.models["a"].ctx == 256


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('[models.a]\npath = "m"\ngpu_layer = 3\n', ["models.a.gpu_layer", "did you mean 'gpu_layers'"]),
        ('[models.a]\nurl = "http://h"\napi_key = "k"\n', ["models.a.api_key", "did you mean 'api_key_"]),
        ("[gpus.0]\nlink_mb_s = 250\n", ["gpus.0.link_mb_s", "did you mean 'link_mb_per_s'"]),
        ("[thermal]\nwarn = 80\n", ["thermal.warn", "did you mean 'warn_c'"]),
        ("[placement]\nmax_hots = 1\n", ["placement.max_hots", "did you mean 'max_hot'"]),
        ('[models]\npath = "m.gguf"\n', ["models.path", "is no table", "[models.NAME]"]),
        ("[models.a]\ntier = 2\n", ["models.a", "give a path (a GGUF file) or a url"]),
        ('[models.a]\npath = "m"\nurl = "http://h"\n', ["models.a", "one of them"]),
        ('[models.a]\nurl = "ftp://h"\n', ["models.a.url", "write it as http://host:port/v1"]),
        ('[models.a]\nurl = "https://me:secret@h/v1"\n', ["models.a.url", "api_key_env or api_key_file"]),
        ('[models.a]\nurl = "http://h"\ngpu_layers = 3\n', ["models.a", "gpu_layers says nothing", "url"]),
        ('[models.a]\npath = "m"\napi_key_env = "K"\n', ["models.a", "api_key_env belongs to a url"]),
        ('[models.a]\nurl = "http://h"\napi_key_env = "K"\napi_key_file = "f"\n', ["both given"]),
        ('[models.a]\npath = "m"\nctx = 10\n', ["models.a", "ctx = 10", "at least 64"]),
        ('[models.a]\npath = "m"\nctx = -1\n', ["models.a.ctx", "greater than or equal to 0"]),
        ('[models.a]\npath = "m"\nparallel = 65\n', ["models.a.parallel", "64"]),
        ('[models.a]\npath = "m"\ntier = 0\n', ["models.a.tier", "1"]),
        ('[models.a]\npath = "m"\nrole = "boss"\n', ["models.a.role", "'worker' or 'brain'"]),
        ('[models.a]\npath = "m"\nsplit = ["0"]\n', ["models.a.split", "one card (0) is no split"]),
        ('[models.a]\npath = "m"\nsplit = [1, "1"]\n', ["models.a.split", "card 1 is named twice"]),
        ('[models.a]\npath = "m"\nsplit = ["0", "left"]\n', ["models.a.split.1", "'left' is no card"]),
        ('[models.a]\npath = "m"\nsplit = ["0", "00"]\n', ["'00' is no card"]),
        ('[models.a]\npath = "m"\nsplit = [0, 1]\ntensor_split = [1]\n', ["1 shares for 2 cards"]),
        (
            '[models.a]\npath = "m"\ntensor_split = [1, 2]\n',
            ["models.a.tensor_split", "2 shares for 0 cards"],
        ),
        (
            '[models.a]\npath = "m"\nsplit = [0, 1]\ntensor_split = [1, 0]\n',
            ["tensor_split.1", "greater than 0"],
        ),
        ('[models.a]\npath = "m"\nsplit = [0, 1]\ntensor_split = [1, inf]\n', ["tensor_split.1", "finite"]),
        ('[models.a]\npath = "m"\nsplit = [0, 1]\nplacement = "single_gpu"\n', ["models.a", "single_gpu"]),
        ('[models.a]\npath = "m"\nplacement = "split_gpu"\n', ["models.a.placement", "add split"]),
        ('[models."a b"]\npath = "m"\n', ["models.a b", "no plain name"]),
        ('[models."-a"]\npath = "m"\n', ["no plain name"]),
        ("[gpus.left]\nvram_mb = 3\n", ["gpus.left", "no card", "[gpus.0]"]),
        ("[gpus.0]\nlink_mb_per_s = 0\n", ["gpus.0.link_mb_per_s", "greater than 0"]),
        (
            "worker_gpus = [0, 1, 0]\n",
            ["worker_gpus", "worker-1 and worker-3 are both on card 0", "share_gpus"],
        ),
        (
            "worker_gpus = [1, 3]\nbrain_gpus = [0, 3]\n",
            ["worker_gpus", "worker-2 is on card 3", "brain's (0, 3)"],
        ),
        (f"worker_gpus = [3]\n{PAIR}", ["worker-1 is on card 3, which is the brain's (0, 3)"]),
        (f"brain_gpus = [0, 2]\n{PAIR}", ["models.big.split", "card 3 is none of the brain_gpus (0, 2)"]),
        ("brain_gpus = [0, 0]\n", ["brain_gpus", "card 0 is named twice"]),
        (
            'brain_gpus = [0]\n[models.a]\npath = "m"\nsplit = [0, 1]\n',
            ["models.a.split", "card 0 is the brain's", "share_gpus"],
        ),
        ("[thermal]\nwarn_c = 90\n", ["thermal", "critical_c = 90 is not above warn_c = 90"]),
        ("[placement]\nhot_at_start = 3\nmax_hot = 1\n", ["placement", "hot_at_start = 3", "max_hot = 1"]),
        (
            '[models.small]\npath = "m"\n[placement]\ndefault_model = "smal"\n',
            ["placement.default_model", "no [models.smal]", "did you mean 'small'"],
        ),
        ('[placement]\ndefault_model = "x"\n', ["there are none"]),
    ],
)
def test_what_cannot_be_is_refused_with_place_and_fix(tmp_path, text, parts):
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    said = str(caught.value)
    assert said.startswith(str(tmp_path / "rigbus.toml"))
    for part in parts:
        assert part in said, said


def test_shared_cards_are_a_decision(tmp_path):
    text = f"worker_gpus = [0, 0]\nshare_gpus = true\n{PAIR}"
    assert loaded(tmp_path, text).settings.worker_gpus == ["0", "0"]


def test_one_file_under_two_names_is_a_warning_that_names_both(tmp_path):
    at = loaded(tmp_path, '[models.a]\npath = "x/../m.gguf"\n[models.b]\npath = "m.gguf"\n')
    (said,) = at.warnings
    assert "models a and b are one file" in said
    assert str(tmp_path / "m.gguf") in said
    at = loaded(tmp_path, 'model = "m.gguf"\n[models.m]\npath = "m.gguf"\n')
    assert at.warnings == ()
    at = loaded(tmp_path, 'model = "n/m.gguf"\n[models.m]\npath = "m.gguf"\n')
    assert "has the name of [models.m], which is another model" in at.warnings[0]


def test_a_model_configured_twice_is_no_toml(tmp_path):
    with pytest.raises(ConfigError, match="not TOML"):
        loaded(tmp_path, '[models.a]\npath = "m"\n[models.a]\npath = "n"\n')


@pytest.mark.parametrize("name", sorted(profiles()))
def test_a_shipped_profile_is_a_whole_configuration(name):
    at = load(config=profiles()[name])
    assert at.warnings == ()
    assert at.settings.models


def test_the_profile_of_five_1060s_seats_brain_and_workers():
    s = load(config=profiles()["seed-5x1060"]).settings
    assert (s.brain_gpus, s.worker_gpus) == (["0", "3"], ["1", "2", "4"])
    assert s.placement.hot_at_start == 1
    assert {s.gpus[str(n)].pcie_group for n in range(5)} == {"switch-0"}
    assert {s.gpus[str(n)].link_mb_per_s for n in range(5)} == {250}
    (brain,) = [m for m in s.models.values() if m.role == "brain"]
    assert brain.split == ["0", "3"]
