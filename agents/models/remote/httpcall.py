"""One request to a model's HTTP server: opened, read and closed by one thread, cancelled from any. Standard library only.

The thread that runs a ``Call`` owns its socket; a cancel only shuts the connection down, which wakes that thread.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPS_PORT, HTTPConnection, HTTPException, HTTPResponse, RemoteDisconnected
from math import isnan
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from ....bus.config.urls import HIDDEN, shown_url
from ....bus.errors import DefinitionError, RigbusError
from ....bus.openai.client import error_words

RETRY_AFTER_MAX_S: Final = 60.0
READ_BYTES: Final = 64 * 1024
_ERROR_BYTES: Final = 64 * 1024
_KEY_BYTES: Final = 4096


class RemoteFailed(RigbusError):
    """A server of a model did not answer, or broke off. Class ``infra``; ``retry``: at once may help.

    ``retry_after_s``: what the server asked for. ``away``: it could not be reached at all.
    """

    error_class: ClassVar[str] = "infra"

    def __init__(
        self, message: str, *, retry: bool = False, away: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.retry = retry
        self.away = away
        self.retry_after_s = retry_after_s


class ServerRefused(DefinitionError):
    """The server refuses the request as it is; ``status`` is its HTTP status, 0 where none came."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class BadServer(ServerRefused):
    """The server can never be used as it is configured: its key, its URL, the model's name."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Where a server's key stands: in the environment variable ``env`` or the first line of ``file``; read for each request.

    The key itself is in no configuration, message or log.
    """

    env: str = ""
    file: Path | None = None

    def read(self) -> str:
        """The key, "" where none is configured.

        Raises:
            BadServer: the variable or file is not there, empty, or holds no key.
        """
        if self.file is not None:
            try:
                with self.file.expanduser().open(encoding="utf-8") as f:
                    words = f.readline(_KEY_BYTES)
            except (OSError, UnicodeError) as e:
                raise BadServer(f"api key file {self.file}: {e}; write the key on its first line") from e
            where = f"api key file {self.file}"
        elif self.env:
            words, where = os.environ.get(self.env, ""), f"environment variable {self.env}"
        else:
            return ""
        key = words.strip()
        if not key:
            raise BadServer(f"{where}: there is no key; put the server's API key there")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise BadServer(
                f"{where}: this is no API key (spaces or characters that no header takes); correct it"
            )
        return key

    def hint(self) -> str:
        """What to do about a key that was refused."""
        if self.file is not None:
            return f"correct the key in {self.file}"
        return (
            f"correct the key in {self.env}" if self.env else "configure its API key (a variable or a file)"
        )


class Server:
    """Where the requests go. ``silent_s``: without a byte from it, then it counts as hung. The key travels as a bearer
    token, or alone in another ``key_header``; ``headers`` are sent with each request.

    Raises:
        BadServer: the URL is none that we can use.
    """

    def __init__(
        self,
        url: str,
        key: ApiKey,
        *,
        connect_s: float,
        silent_s: float,
        key_header: str = "Authorization",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        try:
            parts = urlsplit(url)
            host = parts.hostname
        except ValueError:  # its words would repeat the url
            raise BadServer(f"url {shown_url(url)!r} is none of a server; give http://HOST:PORT/v1") from None
        try:
            port = parts.port
        except ValueError:
            raise BadServer(
                f"url of {host}: its port is no number up to 65535; give http://HOST:PORT/v1"
            ) from None
        if parts.username is not None or parts.query or parts.fragment:
            raise BadServer(
                f"url of {host}: only scheme, host, port and path; the key goes in a variable or a file"
            )
        if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable():
            raise BadServer(
                f"url {shown_url(url)!r} is none of a server; give http://HOST:PORT/v1 or https://…"
            )
        self.host, self.port = host, port
        self.path = parts.path.rstrip("/") or "/v1"
        self.url = f"{parts.scheme}://{parts.netloc}{self.path}"
        self.key = key
        self.key_header, self.headers = key_header, dict(headers or {})
        self.connect_s, self.silent_s = connect_s, silent_s
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None

    def connection(self) -> HTTPConnection:
        """Not open yet. Of https it opens the TCP connection only: TLS is ``tls``, afterwards."""
        kind = HTTPConnection if self.tls is None else _BeforeTls
        return kind(self.host, self.port, timeout=self.connect_s)

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Call:
        """A request of ``path`` below the URL, not sent yet."""
        return Call(self, method, self.path + path, None if body is None else json.dumps(body).encode())


class _BeforeTls(HTTPConnection):
    default_port = HTTPS_PORT


class Call:
    """One request. ``with call: call.open(); while data := call.read(): …``"""

    def __init__(self, server: Server, method: str, path: str, body: bytes | None) -> None:
        self.cancelled = False
        self.streamed = False  # the answer is a stream of events
        self._server = server
        self._method, self._path, self._body = method, path, body
        self._connection = server.connection()
        self._response: HTTPResponse | None = None
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            if self._sock is not None:
                self._sock.close()
            self._sock = None
        if self._response is not None:
            self._response.close()
        self._connection.close()

    def cancel(self) -> None:
        """From any thread: what the call waits for ends now, as RemoteFailed."""
        with self._lock:
            self.cancelled = True
            if self._sock is not None:
                _shut(self._sock)

    def open(self) -> None:
        """Send the request and take the head of its answer.

        Raises:
            RemoteFailed: no answer, or one that says "later" (429, 5xx). BadServer: 401, 403, 404, a certificate.
            DefinitionError: this request is refused (another 4xx).
        """
        self._connect()
        headers = {"Accept": "application/json, text/event-stream", "User-Agent": "rigbus"}
        headers |= self._server.headers
        key = self._server.key.read()
        if key:
            name = self._server.key_header
            headers[name] = f"Bearer {key}" if name == "Authorization" else key
        if self._body is not None:
            headers["Content-Type"] = "application/json"
        try:
            try:
                self._connection.request(self._method, self._path, self._body, headers)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it did not want the whole body: it may have said why
            self._response = self._connection.getresponse()
        except TimeoutError as e:
            raise self._silent() from e
        except (RemoteDisconnected, ConnectionError) as e:
            raise RemoteFailed(f"{self._server.url}: closed without an answer ({e})", retry=True) from e
        except (OSError, HTTPException) as e:
            raise RemoteFailed(f"{self._server.url}: no HTTP answer ({str(e)[:200]!r})") from e
        if self._response.status != 200:
            raise self._refusal(self._response, key)
        kind = self._response.headers.get("Content-Type", "")
        self.streamed = kind.partition(";")[0].strip().lower() == "text/event-stream"

    def read(self) -> bytes:
        """The next piece of the answer as it comes, b"" at its end.

        Raises:
            RemoteFailed: it broke off, or was silent for too long.
        """
        if self._response is None:
            raise ValueError("read before open")
        try:
            return self._response.read1(READ_BYTES)
        except TimeoutError as e:
            raise self._silent() from e
        except (
            OSError,
            HTTPException,
            ValueError,
        ) as e:  # ValueError: a connection that a cancel has shut down
            raise RemoteFailed(f"{self._server.url}: its answer broke off ({str(e)[:200]!r})") from e

    def read_all(self, max_bytes: int) -> bytes:
        """The whole answer.

        Raises:
            RemoteFailed: as ``read``, or it is longer than ``max_bytes``.
        """
        parts, size = [], 0
        while data := self.read():
            parts.append(data)
            size += len(data)
            if size > max_bytes:
                raise RemoteFailed(f"{self._server.url}: an answer of more than {max_bytes >> 20} MiB")
        return b"".join(parts)

    def _connect(self) -> None:
        try:
            self._connection.connect()
            self._may_be_cut(self._connection.sock)
            if self._server.tls is not None:
                self._connection.sock = self._server.tls.wrap_socket(
                    self._connection.sock, server_hostname=self._server.host
                )
        except ssl.SSLCertVerificationError as e:
            raise BadServer(
                f"{self._server.url}: its certificate is not trusted ({e.verify_message}); "
                "add its authority to the system's, or name it in SSL_CERT_FILE"
            ) from e
        except OSError as e:
            raise RemoteFailed(
                f"{self._server.url} cannot be reached: {e}; is the server running?",
                retry=not self.cancelled,
                away=not self.cancelled,
            ) from e
        self._connection.sock.settimeout(self._server.silent_s)

    def _may_be_cut(self, sock: socket.socket) -> None:
        """From here on a cancel shuts the connection down. By a descriptor of its own: TLS takes this one away, and a
        handshake may drip for ever, too."""
        with self._lock:
            self._sock = sock.dup()
            if self.cancelled:
                _shut(self._sock)

    def _silent(self) -> RemoteFailed:
        return RemoteFailed(
            f"{self._server.url}: not a byte for {self._server.silent_s:g} s; does the server hang?"
        )

    def _refusal(self, response: HTTPResponse, key: str) -> RigbusError:
        try:
            body = response.read(_ERROR_BYTES)
        except (OSError, HTTPException):
            body = b""
        if key:  # some servers repeat the key that they refuse
            body = body.replace(key.encode(), HIDDEN.encode())
        words = error_words(body)
        status, url = response.status, self._server.url
        said = f"{url} answers {status}" + (f": {words}" if words else f" ({response.reason})")
        if status in (401, 403):
            return BadServer(f"{said}; {self._server.key.hint()}", status)
        if status == 404:
            fix = "is the model's name right, and does the URL end where /chat/completions follows?"
            return BadServer(f"{said}; {fix}", status)
        if 300 <= status < 400:
            place = shown_url(response.headers.get("Location", "?"))[:200]
            return BadServer(f"{said}; give the URL that it moved to: {place}", status)
        if status in (408, 425, 429) or status >= 500 or status < 300:
            after_s = retry_after_s(response.headers.get("Retry-After", ""), datetime.now(UTC))
            return RemoteFailed(said, retry=status in (429, 503), retry_after_s=after_s)
        return ServerRefused(said, status)


def retry_after_s(text: str, now_at: datetime) -> float | None:
    """The header Retry-After (seconds, or a date) in seconds, at most RETRY_AFTER_MAX_S; None: it says nothing."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - now_at).total_seconds()
    return None if isnan(seconds) else min(max(seconds, 0.0), RETRY_AFTER_MAX_S)


def _shut(sock: socket.socket) -> None:
    """Wake the thread that reads from the same connection."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended by itself
