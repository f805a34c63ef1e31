"""A hub on loopback, with the standard library alone, that the real `huggingface_hub` talks to.

It keeps what the real one keeps: immutable commits of 40 hex digits, branches and tags, large
files by sha256 (checked on arrival), private and gated repositories, tokens, large downloads from
another host that gets no token; and it can misbehave, see `Faults`. Of huggingface_hub 2.4, no xet.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hub_storage import LARGE, Blob, Refused, Repo, Storage, entry

from zoo.release import seal

CHUNK_BYTES = 1 << 16


@dataclass
class Faults:
    """How the hub misbehaves until `hub.faults = Faults()` heals it."""

    corrupt: set[str] = field(default_factory=set)
    """Names of files that are served with one changed byte, same size, same ETag."""
    cut_after: int | None = None
    """A transfer of weights is cut off after this many bytes..."""
    cuts: int = 1
    """... so many times."""
    slow: float = 0.0
    """Seconds to sleep at every 64 kB of a transfer, up and down."""


class Request(NamedTuple):
    """One line of the log."""

    method: str
    path: str
    authorised: bool


class Hub(Storage):
    """The server and what a test asks of it; stop it and no thread or socket is left."""

    def __init__(self, storage: Path) -> None:
        super().__init__(storage)
        self.tokens = {"hf_writer": "write", "hf_reader": "read"}
        self.requests: list[Request] = []
        self.faults = Faults()
        self.half_way = threading.Event()  # set when 64 kB of weights have gone up or down
        self.lock = threading.RLock()
        self.connections: set[socket.socket] = set()
        self.server = _Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        # another origin to a client, like the hub's content network
        self.content_url = f"http://localhost:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def stop(self) -> None:
        if not self.thread.is_alive():
            return
        self.server.shutdown()
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)  # kept alive by an idle client
            except OSError:
                pass  # the client was faster
        self.server.server_close()
        self.thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # joined by server_close
    block_on_close = True

    def process_request(self, request, client_address) -> None:
        self.RequestHandlerClass.hub.connections.add(request)  # before its thread runs
        super().process_request(request, client_address)

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a killed client is no news
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else 40 ms of delayed acknowledgement per answer

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        authorised = "Authorization" in self.headers
        self.hub.requests.append(Request(self.command, self.path, authorised))
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        self.body = b""
        if self.command == "POST":
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            for methods, pattern, action in ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and self.command in methods:
                    # each part is unquoted after the split: a branch name may hold a slash
                    return action(self, *(unquote(part) for part in match.groups()))
            raise Refused(404, "", "Sorry, we can't find the page you are looking for.")
        except Refused as refused:
            self._send(
                json.dumps({"error": str(refused)}).encode(), refused.status, refused.headers
            )

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._transfer(body)

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def _transfer(self, body: bytes) -> None:
        starts = range(0, len(body), CHUNK_BYTES)
        for part in self._throttled(body[at : at + CHUNK_BYTES] for at in starts):
            self.wfile.write(part)

    def _throttled(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        """The parts of a transfer, slowly, and cut off where the faults say so."""
        sent, faults = 0, self.hub.faults
        for part in parts:
            if faults.cuts and faults.cut_after is not None and sent + len(part) > faults.cut_after:
                yield part[: faults.cut_after - sent]
                faults.cuts -= 1
                self.connection.shutdown(socket.SHUT_RDWR)
                raise ConnectionAbortedError
            yield part
            sent += len(part)
            if len(part) == CHUNK_BYTES:
                self.hub.half_way.set()
                time.sleep(faults.slow)

    def _role(self) -> str | None:
        given = self.headers.get("Authorization")
        role = self.hub.tokens.get((given or "").removeprefix("Bearer "))
        if given and role is None:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return role

    def _repo(self, name: str, *, write: bool = False, content: bool = False) -> Repo:
        role, repo = self._role(), self.hub.repos.get(name)
        if repo is None or (repo.private and role is None):
            raise Refused(404 if role else 401, "RepoNotFound", "Repository not found")
        if content and repo.gated:
            raise Refused(403, "GatedRepo", f"Access to model {name} is restricted")
        if write and role != "write":
            raise Refused(403, "", "Forbidden: you must use a write token to upload")
        return repo

    def create(self) -> None:
        asked = json.loads(self.body)
        if self._role() != "write":
            raise Refused(403 if self._role() else 401, "", "You don't have the rights to create")
        name = f"{asked['organization'] or 'writer'}/{asked['name']}"
        with self.hub.lock:
            exists = name in self.hub.repos
            if not exists:
                # huggingface_hub 1 asks for `private`, 2 for a visibility
                private = asked.get("visibility") == "private" or bool(asked.get("private"))
                self.hub.create(name, private=private)
        body = {"url": f"{self.hub.url}/{name}", "name": name}
        error = {"error": "You already created this model repo"} if exists else {}
        self._send(json.dumps(body | error).encode(), 409 if exists else 200)

    def info(self, name: str, revision: str = "main") -> None:
        repo = self._repo(name)
        sha = repo.resolve(revision)
        files = [{"rfilename": path} for path in repo.commits[sha]]
        facts = {"id": name, "sha": sha, "private": repo.private, "gated": repo.gated}
        self._json({**facts, "siblings": files, "tags": [], "downloads": 0})

    def tree(self, name: str, revision: str) -> None:
        repo = self._repo(name)
        tree = repo.commits[repo.resolve(revision)]
        self._json([entry(path, blob) for path, blob in sorted(tree.items())])

    def paths(self, name: str, revision: str) -> None:
        repo = self._repo(name)
        tree = repo.commits[repo.resolve(revision)]
        wanted = parse_qs(self.body.decode()).get("paths", [])
        self._json([entry(path, tree[path]) for path in wanted if path in tree])

    def preupload(self, name: str, revision: str) -> None:
        repo = self._repo(name, write=True)
        tree = repo.commits[repo.resolve(revision)]
        answers = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            large = path.endswith(LARGE) or b"\0" in base64.b64decode(file["sample"])
            old = tree.get(path)
            oid = old and (old.sha256 if old.large else old.oid)
            mode = "lfs" if large else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def batch(self, name: str) -> None:
        self._repo(name, write=True)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            oid = asked["oid"]
            verify = {"href": f"{self.hub.url}/{name}.git/info/lfs/verify"}
            upload = {"href": f"{self.hub.content_url}/upload/{oid}?signature=for-this-only"}
            if not (self.hub.storage / oid).exists():
                asked["actions"] = {"upload": upload, "verify": verify}
            objects.append(asked)
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        left = int(self.headers["Content-Length"])
        arriving = self.hub.storage / f"arriving-{secrets.token_hex(8)}"

        def parts() -> Iterator[bytes]:
            nonlocal left
            while left and (part := self.rfile.read(min(left, CHUNK_BYTES))):
                left -= len(part)
                yield part

        try:
            with arriving.open("wb") as stream:
                for part in self._throttled(parts()):
                    stream.write(part)
            if left or hashlib.sha256(arriving.read_bytes()).hexdigest() != oid:
                raise Refused(400, "", "The content is not what was announced")
            arriving.replace(self.hub.storage / oid)
        finally:
            arriving.unlink(missing_ok=True)
        self._send(b"")

    def verify(self, name: str) -> None:
        self._repo(name, write=True)
        asked = json.loads(self.body)
        if not (self.hub.storage / asked["oid"]).exists():
            raise Refused(404, "", "No such object")
        self._json({})

    def commit(self, name: str, branch: str) -> None:
        repo = self._repo(name, write=True)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        with self.hub.lock:
            head = repo.resolve(branch)
            if header.get("parentCommit") not in (None, head):
                raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
            tree = dict(repo.commits[head])
            for line in lines[1:]:
                self._apply(tree, line["key"], line["value"])
            sha = repo.commit(tree, header["summary"] + header["description"], branch)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})

    def _apply(self, tree: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        if key == "file":
            tree[value["path"]] = self.hub.store(base64.b64decode(value["content"]), False)
        elif key == "lfsFile" and (self.hub.storage / value["oid"]).exists():
            tree[value["path"]] = self.hub.blob(value["oid"], True)
        elif key == "deletedFile" and value["path"] in tree:
            del tree[value["path"]]
        else:
            raise Refused(400, "", f"Cannot commit {key} {value}")

    def mark(self, name: str, kind: str, revision: str) -> None:
        repo, asked = self._repo(name, write=True), json.loads(self.body)
        if kind == "tag":
            repo.refs[asked["tag"]] = repo.resolve(revision)
        else:
            repo.refs[revision] = repo.resolve(asked.get("startingPoint", "main"))
        self._json({})

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self._repo(name, content=True)
        sha = repo.resolve(revision)
        blob = repo.commits[sha].get(path)
        if blob is None:
            raise Refused(404, "EntryNotFound", "Entry not found", sha)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{blob.oid}"'}
        if not blob.large:
            return self._content(blob, path, headers)
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        headers["Location"] = f"{self.hub.content_url}/content/{blob.sha256}/{path}"
        self._send(b"", 302, headers)

    def content(self, sha256: str, path: str) -> None:
        self._content(self.hub.blob(sha256, True), path, {"ETag": f'"{sha256}"'})

    def _content(self, blob: Blob, path: str, headers: dict[str, str]) -> None:
        content = bytearray(self.hub.read(blob))
        if path in self.hub.faults.corrupt:
            content[len(content) // 2] ^= 1
        headers["Accept-Ranges"] = "bytes"
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self._send(bytes(content), 200, headers)
        first, last = int(wanted[1]), int(wanted[2] or blob.size - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{blob.size}"
        self._send(bytes(content[first : last + 1]), 206, headers)


NAME = r"([^/]+/[^/]+?)"
REPO = "(?:datasets/)?" + NAME
API = "/api/(?:models|datasets)/" + NAME
"""A hub keeps models and data sets of one name apart; no test has both."""
ROUTES = [
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", lambda handler: handler._json({})),
    (("GET",), API, _Handler.info),
    (("GET",), f"{API}/revision/([^/]+)", _Handler.info),
    (("GET",), f"{API}/tree/([^/]+)", _Handler.tree),
    (("POST",), f"{API}/paths-info/([^/]+)", _Handler.paths),
    (("POST",), f"{API}/preupload/([^/]+)", _Handler.preupload),
    (("POST",), f"{API}/commit/([^/]+)", _Handler.commit),
    (("POST",), f"{API}/(tag|branch)/([^/]+)", _Handler.mark),
    (("POST",), rf"/{REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (("POST",), rf"/{REPO}\.git/info/lfs/verify", _Handler.verify),
    (("PUT",), "/upload/([0-9a-f]{64})", _Handler.upload),
    (("GET", "HEAD"), f"/{REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
    (("GET", "HEAD"), "/content/([0-9a-f]{64})/(.+)", _Handler.content),
]


def talk_to(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `huggingface_hub` ask `url` and keep cache and tokens in `home`, here and in children."""
    from huggingface_hub import constants

    settings = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    for name, value in {**settings, "NO_PROXY": "127.0.0.1,localhost"}.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    # what the client read at import
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of its own for one test, with cache and tokens in its folder."""
    import huggingface_hub

    server = Hub(tmp_path / "hub" / "storage")
    talk_to(server.url, tmp_path / "hub" / "home", monkeypatch)
    yield server
    huggingface_hub.close_session()
    server.stop()


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A sealed folder with what a release has, if not a network."""
    folder = tmp_path / "release"
    write(folder, {"model.safetensors": random.Random(0).randbytes(300_000),
                   "config.json": b'{"architecture": "test_resnet"}\n',
                   "README.md": "# A net\n\nTop-1 71.0 % é\n".encode(),
                   ".eval_results/imagenet.yaml": b"value: 71.0\n"})  # fmt: skip
    return folder


@pytest.fixture
def token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    """May write, and is where the client looks for it."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    return "hf_writer"


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    seal(folder, {"name": "net", "source": {"url": "somewhere"}})


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
