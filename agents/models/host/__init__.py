"""A GGUF file behind the ``Model`` protocol: its child process (``engine``) is started, heard, and started again."""

from .keeper import Patience
from .model import ModelHost

__all__ = ["ModelHost", "Patience"]
