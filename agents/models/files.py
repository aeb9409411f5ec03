"""Files that requests and models come with, read without importing llama.cpp."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...bus.errors import DefinitionError
from .requests import MAX_SCHEMA_BYTES


def read_schema(path: Path) -> dict[str, Any]:
    """A JSON schema of its own file.

    Raises:
        DefinitionError: there is no such file, it is too long, or holds no JSON object.
    """
    try:
        with path.open("rb") as f:
            data = f.read(MAX_SCHEMA_BYTES + 1)
        value = json.loads(data) if len(data) <= MAX_SCHEMA_BYTES else None
    except (OSError, ValueError, RecursionError) as e:
        raise DefinitionError(f"json_schema {path}: {e}; put a .json file beside plan.md") from e
    if not isinstance(value, dict):
        raise DefinitionError(f"json_schema {path}: no JSON object of at most {MAX_SCHEMA_BYTES} bytes")
    return value


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
