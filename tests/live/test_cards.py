"""A rig by the shipped profile: the commands of each worker see the card that is its own."""

from __future__ import annotations

import signal
from pathlib import Path

from helpers import Processes, processes_of, wait_for

from rigbus import Client, Task
from rigbus.agents.supervisor.cards import card_uuids, present_cards
from rigbus.bus.paths import find_rig, profiles

#: Three that wait for one another run at once, so each on another worker.
COMMAND = """
touch "$MEET/$RIGBUS_TOKEN"
until [ "$(ls "$MEET" | wc -l)" -ge 3 ]; do sleep 0.02; done
echo "$CUDA_VISIBLE_DEVICES $CUDA_DEVICE_ORDER"
"""


def test_each_worker_of_the_profile_has_its_card(rig_dir: Path, processes: Processes) -> None:
    state, meet = rig_dir / "state", rig_dir / "meet"
    meet.mkdir()
    config = rig_dir / "rigbus.toml"
    config.write_text(profiles()["seed-5x1060"].read_text("utf-8"))
    up = processes.python(
        "-m", "rigbus", "up", "--state", state, "--config", config,
        env={"RIGBUS_RUNTIME": str(rig_dir / "run")},
    )  # fmt: skip
    wait_for(lambda: "ready in" in processes.output(up), timeout_s=30, what="`up` to be ready")
    if not present_cards():
        assert "card 1, 2, 4, 0, 3 is not here (there is none)" in processes.output(up)
    assert [n for n in (find_rig(state).run or {})["pids"] if n.startswith("worker-")] == [
        *("worker-1", "worker-2", "worker-3"),
    ]
    payload = {"command": COMMAND.replace("$MEET", str(meet)), "env": {}}
    with Client(state=state) as client:
        ids = client.submit([Task(type="shell", payload=payload) for _ in range(3)])
        results = list(client.results(ids, timeout_s=30))
    assert all(r.ok for r in results), [r.error for r in results]
    said = sorted(r.value["output"].strip() for r in results)
    assert said == sorted(f"{card_uuids().get(n, n)} PCI_BUS_ID" for n in "124")
    up.send_signal(signal.SIGTERM)
    assert up.wait(30) == 0
    wait_for(lambda: not processes_of(rig_dir), what="every process of the rig to end")
