"""Who gets which card: pure, the driver's files, and the processes that `up` would start."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from rigbus.agents.models.catalogue.catalogue import brain_cards
from rigbus.agents.supervisor.cards import ModelSeat, card_uuids, model_seats, present_cards, seats
from rigbus.agents.supervisor.children import rig_specs
from rigbus.bus.config.models import brain_cards as of_settings
from rigbus.bus.config.settings import Settings
from rigbus.bus.errors import ConfigError
from rigbus.tools import up
from rigbus.tools.worker import worker

FIVE = ["0", "1", "2", "3", "4"]
UUIDS = {n: f"GPU-{n * 8}" for n in FIVE}
WIDE = {"wide": {"path": "w.gguf", "split": ["1", "2"]}}
BIG = {"big": {"path": "b.gguf", "role": "brain", "split": ["0", "3"]}}


def dumped(**settings):
    return Settings(**settings).model_dump(mode="json")


@pytest.mark.parametrize(
    ("given", "present", "workers", "brain"),
    [
        ({}, [], (None, None), None),
        ({"workers": 3}, [], (None,) * 3, None),
        ({}, FIVE, ("0", "1", "2", "3", "4"), None),
        ({"workers": 2}, FIVE, ("0", "1"), None),
        ({"workers": 7}, FIVE, ("0", "1", "2", "3", "4", "", ""), None),
        ({"workers": 7, "share_gpus": True}, FIVE, ("0", "1", "2", "3", "4", "0", "1"), None),
        ({"models": BIG}, FIVE, ("1", "2", "4"), "0,3"),
        ({"brain_gpus": ["2"]}, FIVE, ("0", "1", "3", "4"), "2"),
        ({"brain_gpus": [], "models": BIG}, ["0"], ("0",), None),
        ({"brain_gpus": ["0"]}, ["0"], ("", ""), "0"),
        ({"worker_gpus": ["4", "1"]}, FIVE, ("4", "1"), None),
        ({"worker_gpus": ["4", "1"], "workers": 1}, FIVE, ("4",), None),
        ({"worker_gpus": ["4"], "workers": 2}, [], ("4", ""), None),
        ({"worker_gpus": []}, FIVE, ("", ""), None),
        ({"workers": 0}, FIVE, (), None),
    ],
)
def test_each_worker_has_a_card_of_its_own(given, present, workers, brain):
    found = seats(dumped(**given), present)
    assert (found.workers, found.brain) == (workers, brain)


def test_uuids_are_given_where_they_are_known_and_may_be_given():
    found = seats(dumped(models=BIG), FIVE, UUIDS)
    assert (found.workers, found.brain) == (
        ("GPU-11111111", "GPU-22222222", "GPU-44444444"),
        "GPU-00000000,GPU-33333333",
    )
    found = seats(dumped(brain_gpus=["GPU-22222222"]), FIVE, UUIDS)
    assert len(found.workers) == 4
    assert "GPU-22222222" not in found.workers
    assert found.notes == ()


@pytest.mark.parametrize(
    ("given", "present", "said"),
    [
        (
            {"workers": 7},
            FIVE,
            "7 workers on 5 cards: no card for worker-6 to worker-7; share_gpus = true lets several have one",
        ),
        ({"workers": 6}, FIVE, "6 workers on 5 cards: no card for worker-6; "),
        ({"worker_gpus": ["1", "7"]}, FIVE, "card 7 is not here (there are 0, 1, 2, 3, 4)"),
        ({"models": BIG}, [], "card 0, 3 is not here (there is none)"),
        ({"models": WIDE}, ["0", "1"], "card 2 is not here (there are 0, 1)"),
        ({}, FIVE, ""),
        ({"workers": 7}, [], ""),
        ({"workers": 7, "share_gpus": True}, FIVE, ""),
    ],
)
def test_what_people_should_hear_is_said(given, present, said):
    notes = seats(dumped(**given), present).notes
    assert bool(notes) == bool(said)
    assert said in "".join(notes)


def test_the_brains_cards_are_the_same_of_settings_and_of_plain_data():
    for given in (
        {},
        {"models": BIG},
        {"models": BIG, "brain_gpus": ["1"]},
        {"models": BIG, "brain_gpus": []},
    ):
        s = Settings(**given)
        plain = s.model_dump(mode="json")
        assert of_settings(s.brain_gpus, s.models) == brain_cards(plain["brain_gpus"], plain["models"])


class Machine:
    """What the kernel shows of cards: nodes in /dev, files of the driver in /proc."""

    def __init__(self, folder: Path, nodes: str, cards: dict[str, str | None]) -> None:
        """``nodes``: names after "nvidia"; ``cards``: bus -> the driver's words, None for a file that is not there."""
        self.devices, self.driver = folder / "dev", folder / "proc"
        self.devices.mkdir()
        for name in [
            "null",
            "nvidiactl",
            "nvidia-uvm",
            "nvidia-caps",
            *(f"nvidia{n}" for n in nodes.split()),
        ]:
            (self.devices / name).touch()
        for bus, text in cards.items():
            (self.driver / bus).mkdir(parents=True)
            if text is not None:
                (self.driver / bus / "information").write_text(text)

    def seen(self) -> tuple[list[str], dict[str, str]]:
        return present_cards(self.devices, self.driver), card_uuids(self.devices, self.driver)


def told(uuid: str, minor: int | str) -> str:
    return f"Model: \t\t NVIDIA GeForce GTX 1060 6GB\nIRQ:   \t\t 130\nGPU UUID: \t {uuid}\nDevice Minor: \t {minor}\n"


A, B, C, D = (f"GPU-{letter * 8}-1" for letter in "abcd")
#: Four cards whose minors are not in the order of the bus.
HOST: dict[str, str | None] = {
    "0000:0a:00.0": told(B, 0),
    "0000:01:00.0": told(A, 2),
    "0000:0b:00.0": told(C, 3),
    "0000:0c:00.0": told(D, 1),
}


@pytest.mark.parametrize(
    ("nodes", "cards", "uuids"),
    [
        pytest.param("0 1 2 3", HOST, {"0": A, "1": B, "2": C, "3": D}, id="the whole machine"),
        pytest.param("1 3", HOST, {"0": C, "1": D}, id="a container that sees the host's /proc"),
        pytest.param("1 3", {k: HOST[k] for k in ("0000:0b:00.0", "0000:0c:00.0")}, {"0": C, "1": D}, id="only its own"),
        pytest.param("3", HOST, {"0": C}, id="one that is not the first"),
        pytest.param("0 1 2 3", {"0000:0a:00.0": told(B, 0)}, {"0": B}, id="nodes of cards that fell off the bus"),
        pytest.param("0 1", {"0000:01:00.0": told("GPU-????????-?", 0), "0000:0a:00.0": told(B, 1)}, {"1": B}, id="not opened"),
        pytest.param("0 1", {"0000:01:00.0": None, "0000:0a:00.0": told(B, 1)}, {"1": B}, id="one says nothing"),
        pytest.param("0", {"0000:01:00.0": told(A, ""), "0000:0a:00.0": told(B, "x")}, {}, id="which one is not told"),
    ],
)  # fmt: skip
def test_the_cards_that_are_here_are_those_with_a_node(tmp_path, nodes, cards, uuids):
    present, known = Machine(tmp_path, nodes, cards).seen()
    assert known == uuids
    count = max(len(uuids), int(max(uuids, default="0")) + 1)
    assert present == [str(n) for n in range(count)]


@pytest.mark.parametrize(("nodes", "count"), [("1 3", 2), ("0", 1), ("", 0), ("-1 x 01", 0)])
def test_without_the_drivers_files_the_nodes_are_counted(tmp_path, nodes, count):
    assert Machine(tmp_path, nodes, {}).seen() == ([str(n) for n in range(count)], {})


def test_a_container_without_cards_has_none_whatever_the_driver_says(tmp_path):
    assert Machine(tmp_path, "", HOST).seen() == ([], {})


def test_workers_in_a_container_get_the_cards_that_it_has(tmp_path):
    present, known = Machine(tmp_path, "1 3", HOST).seen()
    found = seats(
        dumped(models={"big": {"path": "b.gguf", "role": "brain"}}, brain_gpus=["1"]), present, known
    )
    assert (found.workers, found.brain, found.notes) == ((C,), D, ())
    (note,) = seats(dumped(worker_gpus=["0", "3"]), present, known).notes
    assert note.startswith("card 3 is not here (there are 0, 1)")


def test_the_models_of_a_split_have_a_worker_of_its_cards_beside_the_single_ones():
    models = {**WIDE, "also": {"path": "a.gguf", "split": ["1", "2"]}, "small": {"path": "s.gguf"}, **BIG}
    settings = dumped(models=models, gpus={"1": {"pcie_group": "left"}})
    found = model_seats(settings, seats(settings, FIVE, UUIDS), UUIDS)
    assert [s.name for s in found] == ["model-1", "model-2", "model-3", "model-cards-1-2", "model-brain"]
    assert found[3] == ModelSeat(
        "model-cards-1-2", "GPU-11111111,GPU-22222222", "left", "worker", split="1,2"
    ), "UUIDs for CUDA, and the names by which the model finds it"
    assert not any(s.split for s in found if s.name != "model-cards-1-2")


def test_a_split_by_uuid_is_named_by_its_indexes_where_they_are_known():
    models = {"wide": {"path": "w.gguf", "split": ["GPU-11111111", "GPU-abcdef99-7"]}}
    settings = dumped(models=models)
    found = model_seats(settings, seats(settings, FIVE, UUIDS), UUIDS)
    assert (found[-1].name, found[-1].cards) == ("model-cards-1-abcdef99", "GPU-11111111,GPU-abcdef99-7")


def test_names_of_two_kinds_that_cannot_be_compared_are_said():
    mixed = {"wide": {"path": "w.gguf", "split": ["GPU-11111111", "GPU-22222222"]}}
    settings = dumped(worker_gpus=["1", "2"], models=mixed)
    (note,) = [n for n in seats(settings, FIVE).notes if "by index and by UUID" in n]
    assert note.startswith("cards 1, 2, GPU-11111111, GPU-22222222 are") and note.endswith(
        "name all in one way"
    )
    assert not any("by index and by UUID" in n for n in seats(settings, FIVE, UUIDS).notes)
    assert not any("by UUID" in n for n in seats(dumped(worker_gpus=["1", "2"], models=WIDE), FIVE).notes)


def test_a_split_worker_is_told_its_cards(monkeypatch):
    monkeypatch.setattr("rigbus.agents.supervisor.cards.present_cards", lambda: FIVE)
    monkeypatch.setattr("rigbus.agents.supervisor.cards.card_uuids", dict)
    specs = {spec.name: spec.argv for spec in up.specs_of(dumped(models=WIDE))}
    words = specs["model-cards-1-2"]
    assert words[words.index("--cards") + 1] == words[words.index("--split") + 1] == "1,2"
    assert "--split" not in specs["model-1"]


def test_up_starts_the_workers_with_their_cards(monkeypatch, capsys):
    monkeypatch.setattr("rigbus.agents.supervisor.cards.present_cards", lambda: FIVE)
    monkeypatch.setattr("rigbus.agents.supervisor.cards.card_uuids", lambda: UUIDS)
    specs = {spec.name: spec.argv for spec in up.specs_of(dumped(models=BIG))}
    assert specs["brain-worker"][-2:] == ("--gpu", "GPU-00000000,GPU-33333333")
    workers = [specs[f"worker-{n}"][-1] for n in (1, 2, 3)]
    assert workers == ["GPU-11111111", "GPU-22222222", "GPU-44444444"]
    assert "worker-4" not in specs
    up.specs_of(dumped(workers=6))
    assert "no card for worker-6;" in capsys.readouterr().err


def test_a_worker_without_a_card_is_told_so_and_the_verb_takes_it():
    specs = {spec.name: spec.argv for spec in rig_specs([None, ""])}
    assert "--gpu" not in specs["worker-1"] + specs["brain-worker"]
    assert specs["worker-2"][-2:] == ("--gpu", "")
    words = list(specs["worker-2"][2:])
    with click.Context(worker) as context:
        worker.parse_args(context, words)
        assert context.params["gpu"] == ""


def test_a_name_in_rigbus_model_is_no_file_and_both_meanings_are_said(monkeypatch):
    monkeypatch.setenv("RIGBUS_MODEL", "tiny")
    with pytest.raises(
        ConfigError, match=r"RIGBUS_MODEL='tiny' is no file: .*path of a GGUF.*name of a model.*--model"
    ):
        up.specs_of(dumped(model="tiny"))
    with pytest.raises(
        ConfigError, match=r"^the model other is no file; give the path of a GGUF file with --model$"
    ):
        up.specs_of(dumped(model="other"))
