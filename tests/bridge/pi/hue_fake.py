"""A Philips Hue bridge for tests: real TLS with a certificate of its own, lamps that change, and troubles on order."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

KEY = "an-application-key"
GROUP = "11111111-0000-0000-0000-000000000000"
WARM = {"on": {"on": True}, "dimming": {"brightness": 40.0}, "color_temperature": {"mirek": 366}}
BLUE = {"on": {"on": True}, "dimming": {"brightness": 80.0}, "color": {"xy": {"x": 0.17, "y": 0.2}}}
DARK = {"on": {"on": False}, "dimming": {"brightness": 20.0}, "color": {"xy": {"x": 0.4, "y": 0.4}}}


def certificate(folder: Path, name: str) -> Path:
    """A new self-signed certificate with its key, as PEM in one file. The test needs the program `openssl`."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl, to make a certificate")
    key, cert, both = (folder / f"{name}.{end}" for end in ("key", "crt", "pem"))
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-days", "2", "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    return both


def fingerprint(pem: Path) -> str:
    import hashlib

    text = pem.read_text()
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN CERT") :])).hexdigest()


class FakeHue:
    """``asked``: (method, path, body) of every request that got through the handshake. ``trouble``: what to do instead."""

    def __init__(self, pem: Path) -> None:
        self.lamps: dict[str, dict[str, Any]] = {"l1": dict(WARM), "l2": dict(BLUE), "l3": dict(DARK)}
        self.asked: list[tuple[str, str, Any]] = []
        self.trouble: list[int | str] = []  #: for the next requests: a status, "hang" or "drip"
        self.retry_after = "7"
        self.pressed = False
        self.released = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.answer(self, "GET")

            def do_PUT(self) -> None:
                fake.answer(self, "PUT")

            def do_POST(self) -> None:
                fake.answer(self, "POST")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def finish_request(self, request: Any, client_address: Any) -> None:
                try:
                    secured = context.wrap_socket(request, server_side=True)
                except (OSError, ssl.SSLError):
                    return  # a client that does not like our certificate
                with secured:
                    super().finish_request(secured, client_address)

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # the client went away

        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def puts(self, what: str = "") -> list[tuple[str, Any]]:
        """The commands to paths that contain ``what``."""
        return [(p.rpartition("resource/")[2], b) for m, p, b in self.asked if m == "PUT" and what in p]

    def answer(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        if self.trouble[:1] == ["drip"]:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not self.released.wait(0.05):
                handler.wfile.write(b" ")
            return
        length = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(length)) if length else None
        self.asked.append((method, handler.path, body))
        trouble = self.trouble.pop(0) if self.trouble else 0
        if trouble == "hang":
            self.released.wait(30)
            return
        status, said = (
            (trouble, {"errors": []})
            if isinstance(trouble, int) and trouble
            else self._do(handler, method, body)
        )
        data = json.dumps(said).encode()
        handler.send_response(status)
        if status in (429, 503):
            handler.send_header("Retry-After", self.retry_after)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _do(self, handler: BaseHTTPRequestHandler, method: str, body: Any) -> tuple[int, Any]:
        path = handler.path
        if path == "/api/config":
            return 200, {"bridgeid": "001788FFFE123456"}
        if path == "/api":
            if not self.pressed:
                return 200, [{"error": {"type": 101, "description": "link button not pressed"}}]
            return 200, [{"success": {"username": KEY, "clientkey": "x"}}]
        if handler.headers.get("hue-application-key") != KEY:
            return 403, {}
        kind, _, id_ = path.removeprefix("/clip/v2/resource/").partition("/")
        if method == "PUT":
            targets = self.lamps if kind == "grouped_light" and id_ == GROUP else {id_: self.lamps.get(id_)}
            if None in targets.values():
                return 404, {}
            for lamp in targets.values():
                if lamp is not None:
                    if "color" in body:
                        lamp["color_temperature"] = {"mirek": None}
                    lamp.update(body)
            return 200, {"data": [{"rid": id_}]}
        return 200, {"data": self._rows(kind)}

    def _rows(self, kind: str) -> list[dict[str, Any]]:
        if kind == "light":
            return [{"id": id_, "owner": {"rid": f"d-{id_}"}, **lamp} for id_, lamp in self.lamps.items()]
        if kind == "room":
            services = [{"rid": GROUP, "rtype": "grouped_light"}]
            children = [{"rid": f"d-{id_}", "rtype": "device"} for id_ in self.lamps]
            return [{"id": "r1", "metadata": {"name": "Office"}, "children": children, "services": services}]
        services = [{"rid": "zone-light", "rtype": "grouped_light"}]
        return [{"id": "z1", "metadata": {"name": "Desk"}, "children": [{"rid": "l2"}], "services": services}]
