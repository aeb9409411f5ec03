"""A planner that is a model behind HTTP: the two shapes that clouds have, over the connection of remote models.

The key is read from a variable or a file at each request; it is in no command line, message or log. A whole answer is asked
for, of a bounded length and within a bounded time, and retried when the server says "later" or does not answer.
"""

from __future__ import annotations

import json
import logging
import os
import random
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from ...agents.models.remote.httpcall import ApiKey, BadServer, RemoteFailed, Server, ServerRefused
from ...bus.errors import ConfigError
from .asking import MAX_ANSWER_BYTES, AskFailed, Question

log = logging.getLogger(__name__)

Provider = Literal["anthropic", "openai"]
URLS: Final = {"anthropic": "https://api.anthropic.com/v1", "openai": "https://api.openai.com/v1"}
KEYS: Final = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
_ANTHROPIC_VERSION: Final = "2023-06-01"
MAX_TOKENS: Final = 16_384
TRIES: Final = 4
BACKOFF_S: Final = 1.0
_BACKOFF_MAX_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """``total_s``: for one question, with all its tries; ``silent_s``: without a byte. ``tries`` of one question, pauses
    of ``backoff_s`` doubled (or as the server asks), with jitter.
    """

    total_s: float = 600.0
    connect_s: float = 20.0
    silent_s: float = 300.0
    tries: int = TRIES
    backoff_s: float = BACKOFF_S


class HttpPlanner:
    """``model`` of a provider, or of a server of your own that speaks its shape at ``base_url``.

    Raises:
        ConfigError: the URL is none, or the key would travel unprotected.
    """

    def __init__(
        self,
        provider: Provider,
        model: str,
        *,
        base_url: str = "",
        key_env: str | None = None,
        key_file: Path | None = None,
        patience: Patience | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = f"{model} ({provider})"[:100]
        self._provider, self._model, self._pause = provider, model, pause
        self._patience = patience or Patience()
        url = base_url or URLS[provider]
        env = KEYS[provider] if key_env is None else key_env
        if key_file is not None:
            require_private(key_file)
        key = ApiKey("" if key_file is not None or (base_url and not os.environ.get(env)) else env, key_file)
        anthropic = provider == "anthropic"
        try:
            self._server = Server(
                url,
                key,
                connect_s=self._patience.connect_s,
                silent_s=self._patience.silent_s,
                key_header="x-api-key" if anthropic else "Authorization",
                headers={"anthropic-version": _ANTHROPIC_VERSION} if anthropic else None,
            )
            has_key = bool(key.read())
        except BadServer as e:
            raise ConfigError(str(e)) from None
        if has_key and urlsplit(url).scheme == "http" and not _is_loopback(self._server.host):
            raise ConfigError(
                f"{self._server.url}: a key is not sent over http:// to another machine; use https://, or no key "
                "(--key-env '')"
            )

    def ask(self, question: Question) -> str:
        """See `asking.Planner`."""
        body = self._anthropic(question) if self._provider == "anthropic" else self._openai(question)
        path = "/messages" if self._provider == "anthropic" else "/chat/completions"
        until = time.monotonic() + self._patience.total_s
        for n in range(1, self._patience.tries + 1):
            try:
                data = self._once(path, body, max(0.0, until - time.monotonic()))
                break
            except BadServer as e:
                raise ConfigError(str(e)) from None
            except ServerRefused as e:
                if "response_format" in body and e.status in (400, 422):
                    log.info("%s; asked again without response_format", e)
                    body = {key: value for key, value in body.items() if key != "response_format"}
                    continue
                raise AskFailed(str(e)) from None
            except RemoteFailed as e:
                tries = f"{n} {'try' if n == 1 else 'tries'}"
                if n == self._patience.tries:
                    raise AskFailed(f"{e} ({tries})") from None
                wait_s = e.retry_after_s
                if wait_s is None:
                    wait_s = min(_BACKOFF_MAX_S, self._patience.backoff_s * 2.0 ** (n - 1))
                wait_s *= 1 + random.random() / 4  # noqa: S311 - so that many do not come back at once
                if time.monotonic() + wait_s >= until:
                    raise AskFailed(f"{e} ({tries} in {self._patience.total_s:g} s)") from None
                log.info("%s; again in %.1f s", e, wait_s)
                self._pause(wait_s)
        else:
            raise AskFailed(f"{self._server.url} refuses every form of the request")
        return self._text(data)

    def _once(self, path: str, body: dict[str, Any], left_s: float) -> bytes:
        call = self._server.call("POST", path, body)
        timer = threading.Timer(left_s, call.cancel)
        timer.daemon = True
        timer.start()
        try:
            with call:
                call.open()
                data = call.read_all(MAX_ANSWER_BYTES)
        finally:
            timer.cancel()
        if call.cancelled:
            raise RemoteFailed(f"{self._server.url}: no whole answer within {self._patience.total_s:g} s")
        return data

    def _anthropic(self, question: Question) -> dict[str, Any]:
        return {
            "model": self._model,
            "max_tokens": MAX_TOKENS,
            "system": question.system,
            "messages": [{"role": "user", "content": question.user}],
            "tools": [
                {
                    "name": question.kind,
                    "description": "Say the answer. Call it exactly once.",
                    "input_schema": question.schema,
                }
            ],
            "tool_choice": {"type": "tool", "name": question.kind},
        }

    def _openai(self, question: Question) -> dict[str, Any]:
        schema = {"name": question.kind, "schema": question.schema, "strict": False}
        return {
            "model": self._model,
            "messages": [
                {"role": "system", "content": question.system},
                {"role": "user", "content": question.user},
            ],
            "response_format": {"type": "json_schema", "json_schema": schema},
        }

    def _text(self, data: bytes) -> str:
        """The answer's words, "" where the server's JSON has none.

        Raises:
            AskFailed: it is no answer of this shape.
        """
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise AskFailed(f"{self._server.url}: its answer is no JSON ({data[:80]!r})") from None
        said = _anthropic_text(value) if self._provider == "anthropic" else _openai_text(value)
        if said is None:
            raise AskFailed(
                f"{self._server.url}: its answer is not of {self._provider}'s shape ({data[:80]!r})"
            )
        return said


def _anthropic_text(value: Any) -> str | None:
    blocks = value.get("content") if isinstance(value, dict) else None
    if not isinstance(blocks, list):
        return None
    texts = []
    for block in blocks:
        if (
            isinstance(block, dict)
            and block.get("type") == "tool_use"
            and isinstance(block.get("input"), dict)
        ):
            return json.dumps(block["input"])
        if isinstance(block, dict) and isinstance(block.get("text"), str):
            texts.append(block["text"])
    return "\n".join(texts)


def _openai_text(value: Any) -> str | None:
    choices = value.get("choices") if isinstance(value, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(message, dict):
        return None
    said = message.get("content")
    return said if isinstance(said, str) else ""


def require_private(file: Path) -> None:
    """
    Raises:
        ConfigError: the key's file is not there, or others may read it.
    """
    try:
        info = file.expanduser().stat()
    except OSError as e:
        raise ConfigError(f"key file {file}: {e.strerror}; write the key on its first line") from None
    if not stat.S_ISREG(info.st_mode):
        raise ConfigError(f"key file {file}: it is no regular file")
    if info.st_mode & 0o077 or info.st_uid not in (os.getuid(), 0):
        raise ConfigError(f"key file {file}: others may read it; chmod 600 {file}")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
