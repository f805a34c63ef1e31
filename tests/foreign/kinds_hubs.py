"""Answers of a hub that are not what a hub answers, to `ssld zoo pull` and to a teacher's weights:
the server of `tests/helpers/hub_server.py` whose bodies, headers and codes are changed on their
way."""

from __future__ import annotations

import functools
import json
import os
import random
import time
from pathlib import Path
from typing import Any

from mutations import as_json, changed, damaged
from sandbox import Kind

CODES = (200, 201, 204, 206, 301, 302, 304, 307, 400, 401, 403, 404, 410, 416, 418, 451)
"""Without those after which the client rightly waits."""
BODIES = (b"", b"null", b"[]", b"[1]", b"{}", b'"x"', b"1", b"<html>", b"\xff", b"\x1f\x8b\x08\0x")
HEADERS: dict[str, tuple[str, ...]] = {
    "ETag": ('"../../../escaped"', '"/etc/passwd"', "", '"x"', "W/" + "a" * 300, '"..%2f..%2fx"'),
    "X-Repo-Commit": ("../../escaped", "main", "", "0" * 40, "a" * 500, "..", "/tmp/escaped"),
    "X-Linked-Etag": ('"../../../escaped"', '"0"', "0" * 64, '"' + "a" * 64 + '"', ".."),
    "X-Linked-Size": ("-1", "0", "1", "99999999999999", "x", "1e5"),
    "Location": (
        "/",
        "//192.0.2.1/x",
        "file:///etc/passwd",
        "x",
        "",
        "http://127.0.0.1:9/",
        "\x01",
    ),
    "Content-Length": ("0", "1", "5", "x", "-1", "99999"),
    "Content-Type": ("text/html", "application/json; charset=utf-16", "\xe9"),
    "Content-Encoding": ("gzip", "br", "zstd", "x"),
    "Content-Range": ("bytes 0-5/9", "x", "bytes */0"),
    "Accept-Ranges": ("none",),
    "Link": ('<http://127.0.0.1:9/>; rel="next"', "<x", '</api/models>; rel="xet-auth"'),
    "X-Error-Code": ("RepoNotFound", "GatedRepo", "EntryNotFound", "RevisionNotFound", "x"),
    "X-Error-Message": ("a" * 5000, "\x1b[2J", "a"),
    "X-Xet-Hash": ("a" * 64, "../x"),
    "Set-Cookie": ("a=b; Domain=.", "x" * 4000),
}
REPO = "org/net"


class Twist:
    """What is done to some of the answers to one input."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)
        self.left = self.rng.choice((0, 1, 1, 1, 2, 99))
        self.wait = self.rng.choice((0, 0, 1, 2, 3, 4))

    def __call__(
        self, body: bytes, status: int, headers: dict[str, str]
    ) -> tuple[bytes, int, dict[str, str]]:
        self.wait -= 1
        if self.wait >= 0 or not self.left:
            return body, status, headers
        self.left -= 1
        what = self.rng.randrange(10)
        if what < 3:
            return self._body(body), status, headers
        if what < 8:
            for name in self.rng.sample(list(HEADERS), self.rng.choice((1, 1, 3))):
                headers = {**headers, name: self.rng.choice(HEADERS[name])}
            return body, status, headers
        if what == 8:
            return body, self.rng.choice(CODES), headers
        return body, status, {k: x for k, x in headers.items() if self.rng.random() < 0.5}

    def _body(self, body: bytes) -> bytes:
        what = self.rng.random()
        if what < 0.4:
            return self.rng.choice(BODIES)
        try:
            tree = json.loads(body)
        except ValueError:
            return damaged(self.rng, body)
        return as_json(self.rng, changed(self.rng, tree)) if what < 0.9 else damaged(self.rng, body)


@functools.cache
def hub(root: Path) -> Any:
    """One server for all inputs of a process, with one release."""
    import hub_server
    from huggingface_hub import constants

    class Handler(hub_server._Handler):
        def _send(
            self, body: bytes, status: int = 200, headers: dict[str, str] | None = None
        ) -> None:
            body, status, headers = twist[0](body, status, dict(headers or {}))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value.encode("latin-1", "replace").decode("latin-1"))
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True  # what was announced and does not come, ends
            if self.command != "HEAD":
                self.wfile.write(body)

    twist: list[Twist] = [Twist("none")]
    found = hub_server.Hub(root / "hub" / "storage")
    found.server.RequestHandlerClass = type("Bound", (Handler,), {"hub": found})
    found.create(REPO)
    folder = root / "release"
    from kinds_models import CONFIG, weights_file

    files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": weights_file()}
    hub_server.write(folder, files)
    found.put(REPO, {file.name: file.read_bytes() for file in folder.iterdir()})
    os.environ |= {"HF_ENDPOINT": found.url, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, found.url)
    constants.HUGGINGFACE_CO_URL_TEMPLATE, constants.ENDPOINT = template, found.url
    constants.HF_HUB_DISABLE_XET = True
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.01))  # the client waits before it repeats
    found.twist = twist
    return found


def write_answer(rng: random.Random, folder: Path) -> None:
    hub(folder.parents[1])  # before the process is watched
    said = {"twist": f"{rng.random()}", "way": rng.choice(("pull", "pull", "pull", "network"))}
    (folder / "answer.json").write_text(json.dumps(said))


def use_answer(folder: Path, out: Path) -> None:
    from huggingface_hub import constants

    said = json.loads((folder / "answer.json").read_text())
    server = hub(folder.parents[1])
    constants.HF_HUB_CACHE = str(out.parent / "cache" / "hf" / "hub")
    server.twist[0] = Twist(said["twist"])
    if said["way"] == "pull":
        from zoo.publish.hub import pull

        pull(REPO, out / "net", say=str)
        return
    from ssld.models.opening import open_network

    open_network("teacher", arch=f"hf-hub:{REPO}", pretrained=True)


MODULES = ("zoo.publish.hub", "huggingface_hub", "ssld.models.classifier", "httpx2")
KINDS = {"hubs.answers": Kind(write_answer, use_answer, MODULES)}
