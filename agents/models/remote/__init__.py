"""A model behind any OpenAI-compatible URL, as a ``Model``."""

from .httpcall import BadServer, RemoteFailed, ServerRefused
from .model import RemoteModel, RemotePatience

__all__ = ["BadServer", "RemoteFailed", "RemoteModel", "RemotePatience", "ServerRefused"]
