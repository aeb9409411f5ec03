"""A GGUF file behind the ``Model`` protocol: its child process (``engine``) is started, heard, and started again."""

from .model import ModelHost
from .patience import Patience

__all__ = ["ModelHost", "Patience"]
