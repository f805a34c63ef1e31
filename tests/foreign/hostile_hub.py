"""A hub on loopback that answers what it is told to, also what no hub answers."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "a" * 40


class HostileHub:
    """`answers`: {pattern of "METHOD /path": answer}, the first that fits counts. An answer is
    bytes that are sent as they are, several parts with a rest after each (see `parts`), or None
    for silence."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes | Iterable[bytes] | None] = {}
        self.requests: list[str] = []
        self.over = threading.Event()
        handler = type("Bound", (_Handler,), {"hub": self})
        self.server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def stop(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def parts(self, every: Iterable[bytes], seconds: float = 0.05) -> Iterable[bytes]:
        """Until the client goes, or the test."""
        for part in every:
            if self.over.wait(seconds):
                return
            yield part


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that had enough


class _Handler(BaseHTTPRequestHandler):
    hub: HostileHub

    def log_message(self, format: str, *args: Any) -> None: ...

    def _answer(self) -> None:
        asked = f"{self.command} {self.path}"
        self.hub.requests.append(asked)
        self.close_connection = True
        found = [x for pattern, x in self.hub.answers.items() if re.fullmatch(pattern, asked)]
        if not found:
            self.send_error(404)
        elif found[0] is None:
            self.connection.settimeout(0.05)
            while not self.hub.over.is_set():
                try:
                    if not self.connection.recv(4096):
                        return
                except TimeoutError:
                    continue
        else:
            for part in [found[0]] if isinstance(found[0], bytes) else found[0]:
                self.connection.sendall(part)
            if self.command != "HEAD":
                self.connection.shutdown(socket.SHUT_WR)

    do_GET = do_HEAD = do_POST = do_PUT = _answer


def answer(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    """A whole answer; `X_Repo_Commit` is the header X-Repo-Commit."""
    lines = {"Content_Length": str(len(body)), "Connection": "close", **headers}
    text = "".join(f"{name.replace('_', '-')}: {x}\r\n" for name, x in lines.items() if x)
    return f"HTTP/1.1 {status}\r\n{text}\r\n".encode("latin1") + body


def file(etag: str, body: bytes = b"{}", **headers: str) -> bytes:
    """What a hub says of a file."""
    return answer(body, **{"X_Repo_Commit": COMMIT, "ETag": etag, **headers})
