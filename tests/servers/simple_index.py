"""A package index on loopback, over real HTTP: the simple repository API (PEP 503) with hashes of every wheel.

It serves wheels from memory and any other path as a file that was put there. Faults to ask for: ``corrupt`` (the last
byte of a file is altered, its hash stays), ``drip`` (a byte every tenth of a second).
"""

import hashlib
import html
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class SimpleIndex(ThreadingHTTPServer):
    """The server and what it holds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.wheels: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.requests: list[str] = []
        self.corrupt: set[str] = set()
        self.drip = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator["SimpleIndex"]:
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


def project(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class Handler(BaseHTTPRequestHandler):
    server: SimpleIndex

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(path)
        if path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[path])
            self.end_headers()
        elif match := re.fullmatch(r"/simple/([^/]+)/", path):
            self.listing(match[1])
        elif path in self.server.files:
            self.answer(self.server.files[path])
        else:
            name = path.removeprefix("/wheels/")
            data = self.server.wheels.get(name)
            self.answer(data[:-1] + b"?" if data and name in self.server.corrupt else data)

    def listing(self, wanted: str) -> None:
        held = {n: d for n, d in self.server.wheels.items() if project(n.split("-")[0]) == wanted}
        links = "".join(
            f'<a href="/wheels/{html.escape(n)}#sha256={hashlib.sha256(d).hexdigest()}">{html.escape(n)}</a><br>\n'
            for n, d in held.items()
        )
        self.answer(f"<!DOCTYPE html><html><body>\n{links}</body></html>".encode() if held else None)

    def answer(self, data: bytes | None) -> None:
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if self.server.drip:
            for byte in data or b"":
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.1)
        else:
            self.wfile.write(data or b"")
