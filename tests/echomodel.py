"""A model worker without a model: it answers with the request's own last message, so that an answer is known beforehand."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from rigbus.agents.llm import ModelAgent
from rigbus.agents.models.protocol import GenerateRequest, Model
from rigbus.agents.models.scripted import ScriptedGeneration, ScriptedModel
from rigbus.bus.errors import DefinitionError

GATE = "ECHO_MODEL_GATE"  #: a file; while it stands requests whose text begins with "held" wait

VERDICT = {"issues": [], "feedback": "well said", "score": 4}


class EchoModel(ScriptedModel):
    """``bad …`` is a request that can never run; a schema is answered by an object, a judge's by 4 of 5."""

    def generate(self, request: GenerateRequest) -> ScriptedGeneration:
        text = request.prompt or str((request.messages or [{}])[-1].get("content"))
        if text.startswith("bad"):
            raise DefinitionError("generate: this one can never run")
        gate, pause = os.environ.get(GATE), threading.Event()
        while gate and text.startswith("held") and Path(gate).exists():
            pause.wait(0.05)
        self.start()
        answer = f"echo {text}"
        if request.json_schema is not None:
            wanted = request.json_schema.get("properties", {})
            decision = {"decision": text, "reason": "it was asked"}
            answer = json.dumps(
                VERDICT if "score" in wanted else decision if "decision" in wanted else {"said": text}
            )
        return ScriptedGeneration(self, request, answer)


class Echo(ModelAgent):
    slots = 8

    def open_model(self) -> Model:
        return EchoModel(name="echo")
