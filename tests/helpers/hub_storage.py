"""What the hub of `hub_server.py` keeps: repositories, immutable commits, contents."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

LARGE = (".safetensors", ".bin", ".pt", ".onnx", ".png", ".tar")
ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE)


class Blob(NamedTuple):
    """A file of a commit; `oid` is what git calls it."""

    sha256: str
    size: int
    oid: str
    large: bool


class Refused(Exception):
    """An answer other than 200, in the hub's own headers."""

    def __init__(self, status: int, code: str = "", message: str = "", commit: str = "") -> None:
        super().__init__(message or code)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}


@dataclass
class Repo:
    """Commits in order, each a whole tree, and the names that point at them."""

    private: bool
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, tree: dict[str, Blob], message: str, branch: str = "main") -> str:
        facts = [self.refs.get(branch), message, len(self.commits), sorted(tree.items())]
        revision = hashlib.sha1(json.dumps(facts).encode()).hexdigest()
        self.commits[revision] = tree
        self.messages.append(message)
        self.refs[branch] = revision
        return revision

    def resolve(self, revision: str) -> str:
        found = self.refs.get(revision, revision)
        if found not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found


class Storage:
    """The repositories of a hub, and what a test does to them by hand."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        storage.mkdir(parents=True)
        self.repos: dict[str, Repo] = {}

    def create(self, name: str, *, private: bool = False) -> Repo:
        repo = self.repos[name] = Repo(private)
        repo.commit({".gitattributes": self.store(ATTRIBUTES.encode(), False)}, "initial commit")
        return repo

    def put(self, name: str, files: dict[str, bytes | None]) -> str:
        """A commit by someone else: other content, or None for a file that goes."""
        repo = self.repos[name]
        tree = dict(repo.commits[repo.refs["main"]])
        for file, content in files.items():
            tree.pop(file, None)
            if content is not None:
                tree[file] = self.store(content, file.endswith(LARGE))
        return repo.commit(tree, "by hand")

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """What a commit holds, without the .gitattributes that the hub itself makes."""
        repo = self.repos[name]
        tree = repo.commits[repo.resolve(revision)]
        return {file: self.read(tree[file]) for file in tree if file != ".gitattributes"}

    def store(self, content: bytes, large: bool) -> Blob:
        sha256 = hashlib.sha256(content).hexdigest()
        (self.storage / sha256).write_bytes(content)
        return self.blob(sha256, large)

    def blob(self, sha256: str, large: bool) -> Blob:
        content = (self.storage / sha256).read_bytes()
        kept = content
        if large:
            head = "version https://git-lfs.github.com/spec/v1\n"
            kept = f"{head}oid sha256:{sha256}\nsize {len(content)}\n".encode()
        oid = hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()
        return Blob(sha256, len(content), oid, large)

    def read(self, blob: Blob) -> bytes:
        return (self.storage / blob.sha256).read_bytes()


def entry(path: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
    if blob.large:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}
    return entry
