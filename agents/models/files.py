"""What can be said of a model without loading it: quick, and without importing llama.cpp."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ...bus.errors import DefinitionError


def check_model_file(path: Path) -> None:
    """What can be said of a model without loading it, quickly and without llama.cpp.

    Raises:
        DefinitionError: there is no such file, or it is no GGUF; the message has the fix.
    """
    try:
        with path.open("rb") as f:
            magic = f.read(4)
    except OSError as e:
        raise DefinitionError(
            f"model {path}: {e.strerror or e}; give the path of a readable .gguf file"
        ) from e
    if magic != b"GGUF":
        raise DefinitionError(f"model {path}: no GGUF file (it begins with {magic!r}); give a .gguf file")


def check_llama() -> None:
    """Whether llama-cpp-python is there, without loading it.

    Raises:
        DefinitionError: it is not.
    """
    if find_spec("llama_cpp") is None:
        raise DefinitionError("llama-cpp-python is not installed; pip install 'rigbus[llm]'")
