"""A model that a test plays, with its worker in a thread of the test, on a rig of processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from helpers import wait_for
from rigs import LiveRig

from rigbus.agents.llm import ModelAgent
from rigbus.agents.models.protocol import GenerateRequest, Model
from rigbus.agents.models.scripted import ScriptedGeneration, ScriptedModel
from rigbus.agents.worker.main import place_of
from rigbus.agents.worker.serve import AgentWorker


class HeldModel(ScriptedModel):
    """Answers only while ``open`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()

    def generate(self, request: GenerateRequest) -> ScriptedGeneration:
        generation = super().generate(request)
        self.open.wait(30)
        return generation


@contextmanager
def serving(rig: LiveRig, model: Callable[[], Model]) -> Iterator[Any]:
    """A worker in a thread of the test that serves this model; yields the model."""
    made = model()

    class Played(ModelAgent):
        def open_model(self) -> Model:
            return made

    ready = threading.Event()
    workers: list[AgentWorker] = []

    def run() -> None:
        worker = AgentWorker(Played(), place_of("played-model", rig.state))
        workers.append(worker)
        ready.set()
        worker.run()

    thread = threading.Thread(target=run, name="played-model", daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        with rig.client() as bus:
            wait_for(
                lambda: any(
                    w["id"] == "played-model" and w["credit"] for w in bus.query("workers")["workers"]
                ),
                what="the model's worker to join",
            )
        yield made
    finally:
        if isinstance(made, HeldModel):
            made.open.set()
        workers[0].stop(fast=True)
        thread.join(20)
        made.close()  # a worker whose handler still runs leaves its model to the end of its process
        with rig.client() as bus:
            wait_for(
                lambda: not any("generate" in w["types"] for w in bus.query("workers")["workers"]),
                what="the model's worker to leave",
            )
