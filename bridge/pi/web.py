"""One HTTP request with a time for the whole of it, and certificates that are pinned. Standard library only."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlsplit

MAX_BODY_BYTES: Final = 4 << 20
_SAID: Final = 200  #: characters of what a server says, in a message
_PIECE: Final = 64 << 10
_SECRET: Final = 5  #: a shorter word of a path or header is none
#: Statuses that are about this very message: another one may well be taken.
_REFUSED: Final = frozenset({400, 405, 406, 411, 413, 414, 415, 422, 431})


class WebError(Exception):
    """It did not arrive, or is not known to have. ``refused``: for what was said, so it will not help to say it again."""

    def __init__(
        self, what: str, *, status: int = 0, retry_after_s: float = 0.0, refused: bool = False
    ) -> None:
        super().__init__(what)
        self.status, self.retry_after_s, self.refused = status, retry_after_s, refused


class WrongCertificate(WebError):
    """Who answers is not who was paired: nothing was said to it."""

    def __init__(self, where: str, wanted: str, found: str) -> None:
        super().__init__(
            f"{where} shows another certificate than the one that it was paired with: SHA-256 {found}, expected {wanted}; "
            "nothing was sent. If the bridge was exchanged or reset, pair anew: `rigbus notify pair`"
        )
        self.wanted, self.found = wanted, found


@dataclass(frozen=True, slots=True)
class Answer:
    """``fingerprint``: SHA-256 of the certificate that was shown, in hex; empty without TLS."""

    status: int
    body: bytes
    fingerprint: str = ""

    def json(self) -> Any:
        """The body.

        Raises:
            WebError: it is no JSON.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise WebError(f"the answer is no JSON: {self.body[:80]!r}") from None


def is_web(url: str) -> bool:
    """It can be asked: http or https, a host, and nothing that does not belong into an address."""
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and " " not in url
        )
    except ValueError:
        return False


def call(
    method: str,
    url: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    timeout_s: float,
    pin: str | None = None,
) -> Answer:
    """One request, answered with 2xx, within ``timeout_s`` altogether (a name server's own time comes on top). The path and
    the headers may bear secrets: what is said of a failure repeats none of them.

    ``pin``: the SHA-256 of the only certificate that is accepted (empty: any, for pairing; None: by the usual authorities).
    It is compared before the first byte of the request is sent. Redirects are not followed.

    Raises:
        WebError: anything else; :class:`WrongCertificate` when it is somebody else.
    """
    parts = urlsplit(url)
    secure, host = parts.scheme == "https", parts.hostname or ""
    port = parts.port or (443 if secure else 80)
    where = f"{host}:{port}"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    sent = {"Connection": "close", "User-Agent": "rigbus", **(headers or {})}
    until = time.monotonic() + timeout_s
    try:
        connection.sock = raw = _connected(host, port, until)
        with _cut_at(until, raw) as was_cut:
            found = ""
            if secure:
                connection.sock, found = _secured(raw, host, where, pin)
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            data = _body(response)
            if was_cut.is_set():  # a body without a length ends with its connection: this one was ended by us
                raise TimeoutError(f"no whole answer within {timeout_s:g} s")
    except ssl.SSLCertVerificationError as e:
        raise WebError(f"{where}: its certificate is not valid ({e.verify_message})") from None
    except (OSError, http.client.HTTPException, ValueError) as e:
        late = f"no whole answer within {timeout_s:g} s" if time.monotonic() >= until else ""
        said = _without_secrets(str(e), path, headers or {})[:_SAID]
        raise WebError(f"{where}: {late or said or type(e).__name__}") from None
    finally:
        connection.close()
    if len(data) > MAX_BODY_BYTES:
        raise WebError(f"{where}: the answer is larger than {MAX_BODY_BYTES} bytes")
    if not 200 <= response.status < 300:
        said = f"{response.reason[:_SAID]}: {data[: 10 * _SAID].decode('utf-8', 'replace')}"
        raise WebError(
            f"{where} answers {response.status} {_without_secrets(said, path, headers or {})[: 2 * _SAID]}",
            status=response.status,
            retry_after_s=_seconds(response.headers.get("Retry-After")),
            refused=response.status in _REFUSED,
        )
    return Answer(response.status, data, found)


def _secured(raw: socket.socket, host: str, where: str, pin: str | None) -> tuple[ssl.SSLSocket, str]:
    if pin is None:
        context = ssl.create_default_context()
    else:
        # A lamp's bridge signs its certificate itself: no authority knows it. The pin is checked instead, below.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    secured = context.wrap_socket(raw, server_hostname=host)
    shown = secured.getpeercert(binary_form=True)
    found = hashlib.sha256(shown).hexdigest() if shown else ""
    if pin and not hmac.compare_digest(found, pin):
        secured.close()
        raise WrongCertificate(where, pin, found or "none")
    return secured, found


def _body(response: http.client.HTTPResponse) -> bytes:
    """The body, or a little more than MAX_BODY_BYTES of it."""
    if not response.chunked:
        data = response.read(MAX_BODY_BYTES + 1)
        if response.length and len(data) <= MAX_BODY_BYTES:
            raise http.client.IncompleteRead(data[:0], response.length)
        return data
    parts, size = [], 0
    # Piece by piece: `read` takes a chunk that says it is -1 bytes long for all that ever comes.
    while size <= MAX_BODY_BYTES and (part := response.read1(_PIECE)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _connected(host: str, port: int, until: float) -> socket.socket:
    """A connection to the first of its addresses that answers, all of them in the time that one has."""
    failed: OSError = ConnectionError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        left = until - time.monotonic()
        if left <= 0:
            break
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(left)
            made.connect(address)
        except OSError as e:
            made.close()
            failed = e
        else:
            return made
    raise failed


@contextmanager
def _cut_at(until: float, raw: socket.socket) -> Iterator[threading.Event]:
    """Shut the connection down at ``until``: each recv has a timeout, but who sends a byte now and then never reaches it.

    By a descriptor of its own: TLS takes ``raw`` away from under us, and begins with a handshake that may drip, too.
    The event is set where that was done.
    """
    was_cut = threading.Event()
    with raw.dup() as handle:
        timer = threading.Timer(max(0.0, until - time.monotonic()), _cut, (handle, was_cut))
        timer.daemon = True
        timer.start()
        try:
            yield was_cut
        finally:
            timer.cancel()
            timer.join()  # it may be cutting just now


def _cut(handle: socket.socket, was_cut: threading.Event) -> None:
    was_cut.set()
    try:
        handle.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended meanwhile


def _without_secrets(said: str, path: str, headers: Mapping[str, str]) -> str:
    """What a server says, without what it repeats of our request: many quote the path that they do not know, some the key."""
    known = {value.rpartition(" ")[2] for name, value in headers.items() if name != "Content-Type"}
    for place in (path, unquote(path)):
        known |= {place, *re.split(r"[/?&=]", place)}
    for word in sorted(known, key=len, reverse=True):
        if len(word) >= _SECRET:
            said = said.replace(word, "…")
    return said


def _seconds(text: str | None) -> float:
    """Of Retry-After; a date is not worth a parser here."""
    return float(text) if text and text.isascii() and text.isdigit() and len(text) < 6 else 0.0
