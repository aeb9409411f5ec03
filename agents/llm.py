"""``ModelAgent``: one local model on the bus, as the handlers `generate`, `parse`, `decide`, `embed` (class ``llm``).

    python -m rigbus.agents.llm --model FILE.gguf        # or: rigbus up --model FILE.gguf
    rigbus call generate prompt="…"

The text of `generate` streams as PROGRESS, a string a chunk, while it is made. The model itself lives in a child process (see
``models/host.py``); this process stays small and keeps its leases whatever llama.cpp does.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

from ..bus.errors import ConfigError, DefinitionError
from ..bus.paths import model_file
from ..bus.tags import offered_tags
from .base import agent_ref
from .llm_tasks import ModelTasks
from .models.files import check_llama, check_model_file
from .models.host import ModelHost
from .models.protocol import PARALLEL, Model

MODEL_VARIABLE: Final = "RIGBUS_MODEL"  #: the GGUF file, where no command line names it
CTX_VARIABLE: Final = "RIGBUS_MODEL_CTX"
GPU_LAYERS_VARIABLE: Final = "RIGBUS_MODEL_GPU_LAYERS"
THREADS_VARIABLE: Final = "RIGBUS_MODEL_THREADS"
PARALLEL_VARIABLE: Final = "RIGBUS_MODEL_PARALLEL"


class ModelAgent(ModelTasks):
    """Serves one model. ``model_file`` of a subclass, else RIGBUS_MODEL, names it; ``ctx`` 0 is the model's own.

    ``tier`` and ``placement`` are what a plan's ``llm_min_tier`` and ``llm_placement`` are compared with.

    ``slots`` requests run at once: the model computes a token for each of them in every step (see ``models/batching.py``).

    It joins the rig at once: a request that comes while the model loads waits, with notes on how far it is. One that
    cannot be served (no such file, no llama.cpp, a prompt longer than the context) ends as class ``definition``.
    """

    model_file: ClassVar[Path | None] = None
    ctx: ClassVar[int] = 0
    gpu_layers: ClassVar[int] = -1
    threads: ClassVar[int] = 0
    slots: ClassVar[int] = PARALLEL
    tier: ClassVar[int] = 1
    placement: ClassVar[str] = "single_gpu"

    def open_model(self) -> Model:
        """The model to serve; not loaded yet. For a subclass to override.

        Raises:
            ConfigError: none is named, or a RIGBUS_MODEL_* variable is no number.
        """
        file = self.model_file or model_file(os.environ)
        if file is None:
            raise ConfigError(f"no model: give --model FILE.gguf, or set {MODEL_VARIABLE}")
        return ModelHost(
            file,
            ctx=_number(CTX_VARIABLE, self.ctx),
            gpu_layers=_number(GPU_LAYERS_VARIABLE, self.gpu_layers),
            threads=_number(THREADS_VARIABLE, self.threads),
            parallel=_number(PARALLEL_VARIABLE, self.slots),
            log_path=self._state / "logs" / f"model-{file.stem}.log" if self._state is not None else None,
        )

    def on_start(self) -> None:
        self.model = self.open_model()
        self.model.start()

    def on_stop(self) -> None:
        self.model.close()

    def offers(self) -> Sequence[str]:
        return [*self.needs, *offered_tags(self.model.name, tier=self.tier, placement=self.placement)]

    @classmethod
    def main(cls, argv: Sequence[str] | None = None) -> None:
        """Run the model as a process of its own: ``--model FILE`` and the options of every agent. Never returns."""
        from .worker.parent import run_alone

        parser = argparse.ArgumentParser(
            prog="rigbus.agents.llm",
            description="Serve a GGUF model as the task types `generate`, `parse`, `decide` and `embed`.",
            epilog="Also --state DIR, --name NAME and --slots N, as every agent.",
            allow_abbrev=False,
        )
        parser.add_argument(
            "--model", type=Path, metavar="FILE", help=f"the .gguf file (default: {MODEL_VARIABLE})"
        )
        parser.add_argument(
            "--ctx", type=int, metavar="N", help="tokens of prompt and answer; 0: the model's, ≤ 4096"
        )
        parser.add_argument("--gpu-layers", type=int, metavar="N", help="layers on the GPU; -1: all")
        parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; 0: by the machine's cores")
        parser.add_argument(
            "--parallel", type=int, metavar="N", help="requests at once; they share the context"
        )
        given, rest = parser.parse_known_args(argv)
        options = {
            MODEL_VARIABLE: given.model and given.model.expanduser().absolute(),
            CTX_VARIABLE: given.ctx,
            GPU_LAYERS_VARIABLE: given.gpu_layers,
            THREADS_VARIABLE: given.threads,
            PARALLEL_VARIABLE: given.parallel,
        }
        # By the environment: the agent runs in a child of run_alone's, as under `rigbus up`.
        os.environ.update({name: str(value) for name, value in options.items() if value is not None})
        try:
            file = cls.model_file or model_file(os.environ)
            if file is None:
                raise ConfigError(f"no model: give --model FILE.gguf, or set {MODEL_VARIABLE}")
            check_model_file(file)
            check_llama()
        except (ConfigError, DefinitionError) as e:
            print(f"rigbus: {e}", file=sys.stderr)
            sys.exit(ConfigError.exit_code)
        # Under `python -m` this module is called __main__; the child must find it by its real name.
        ref = f"{__package__}.llm:{cls.__qualname__}" if cls.__module__ == "__main__" else agent_ref(cls)
        sys.exit(run_alone(ref, rest, program="rigbus.agents.llm"))


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise ConfigError(f"{variable}={text!r} is no whole number; correct or unset it") from None


if __name__ == "__main__":
    ModelAgent.main()
