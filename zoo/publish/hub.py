"""Releases to and from a Hugging Face hub, or a server that speaks like one (`HF_ENDPOINT`).

Content decides, not names or times: a file goes up only if the hub has another sha256 (or git hash,
for what it keeps in git), all in one commit on top of the one that was compared. And what comes
down is hashed, because the client itself accepts wrong content of the right size, for ever.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from zoo import fetch
from zoo.errors import InputError, printable
from zoo.fetch import COMMIT, FAILURES, forget, git_hash, hashes, refuse_outside, sentence
from zoo.publish.local import DIFF_BYTES, Change, Say, compared, difference, tell
from zoo.release import (
    MANIFEST,
    naming,
    new_release,
    read_manifest,
    refuse_full,
    same_release,
    sums_of,
)

Tree = Mapping[str, RepoFile]
RepoType = Literal["model", "dataset"]
REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")
SCAN_BYTES = 1 << 24
PUBLISHED_BY = {"model": "ssld zoo publish", "dataset": "ssld labels push"}


@dataclass(frozen=True)
class Published:
    """Where a release is; in a dry run, what the hub has now (revision '': no such repository)."""

    url: str
    repo: str
    revision: str
    changed: tuple[Change, ...]


def split_repo(text: str) -> tuple[str, str | None]:
    """`org/name@revision` into its two parts; a branch, a tag or a commit, None if not given.

    Raises:
        InputError: it is anything else, a path or an address for instance.
    """
    repo, at, revision = text.partition("@")
    try:
        validate_repo_id(repo)
        # huggingface_hub 1 lets a line's end pass
        sound = repo.isascii() and repo.isprintable() and repo.count("/") == 1
    except HFValidationError:
        sound = False
    if at:
        sound = sound and bool(REVISION.fullmatch(revision)) and ".." not in revision
    if not sound:
        raise InputError(
            f"{text!r} names no repository on a hub; give org/name or org/name@revision, of "
            "letters, digits, '-', '_' and '.'"
        )
    return repo, revision if at else None


def publish(
    folder: Path,
    repo: str,
    *,
    dry_run: bool = False,
    private: bool = False,
    token: str | None = None,
    say: Say = print,
) -> Published:
    """Make the main branch of a repository hold a sealed release folder, in one commit or none.

    Files of the release that was there before and that this one does not have go; what others put
    there stays. Interrupted, it leaves the branch as it was, and can be repeated.

    Raises:
        InputError: the folder is not a release or was changed, or holds the token; the hub cannot
            be reached, refuses, or has something else in the end.
    """
    return put(
        folder, sums_of(folder), repo, dry_run=dry_run, private=private, token=token, say=say
    )


def put(
    folder: Path,
    sums: Mapping[str, str],
    repo: str,
    *,
    repo_type: RepoType = "model",
    mark: str | None = None,
    dry_run: bool = False,
    private: bool = False,
    token: str | None = None,
    say: Say = print,
) -> Published:
    """As `publish`, of any files.

    Args:
        sums: the files, and their sha256.
        mark: a repository with other files must have the same file of this name already.

    Raises:
        InputError: the files hold the token; the hub cannot be reached, refuses, or has something
            else, before or in the end.
    """
    repo, revision = split_repo(repo)
    if revision:
        raise InputError(
            f"what is published goes to the main branch of {repo}; leave out @{revision}"
        )
    hub = _Hub(token, say, repo_type)
    hub.refuse_token_in(folder, sums)
    with hub.one_sentence(repo):
        head = hub.head(repo, private)
        if head is None and not dry_run:
            hub.api.create_repo(repo, repo_type=repo_type, private=private or None, exist_ok=True)
            say(f"created {hub.page(repo)}")
            head = hub.head(repo, private)
        remote = hub.tree(repo, head) if head else {}
        same = _same(folder, sums, remote)
        if mark and not same.get(mark) and remote.keys() - {".gitattributes"}:
            raise InputError(f"{hub.page(repo)} has something else: give another repository")
        changes = compared(folder, sums, same)
        if changes and head:
            changes += hub.stale(repo, head, remote, sums)
        tell(say, changes, hub.page(repo), dry_run)
        if dry_run and head:
            for name in (x.name for x in changes if x.kind == "changed"):
                if remote[name].size <= DIFF_BYTES:
                    old = hub.fetch(repo, head, name)
                    say(difference(old, folder / name, name, f"{repo}@{head[:12]}"))
        elif changes and not dry_run:
            head = hub.commit(folder, repo, changes, head)
            _read_back(hub.tree(repo, head), folder, sums, f"{repo}@{head}")
            say(f"{repo}@{head} holds this release, every sha256 compared")
    return Published(f"{hub.page(repo)}/tree/{head or 'main'}", repo, head or "", tuple(changes))


def pull(repo_at_revision: str, out: Path, *, token: str | None = None, say: Say = print) -> Path:
    """Put the release that a repository has at a revision into `out`, once all of it is verified.

    Raises:
        InputError: there is no such release, the hub cannot be reached, a file is not what
            `ssld.json` says, or `out` holds something else.
    """
    repo, revision = split_repo(repo_at_revision)
    out = out.resolve()
    if not (out / MANIFEST).is_file():
        refuse_full(out)  # before anything is downloaded
    hub = _Hub(token, say)
    with hub.one_sentence(repo_at_revision):
        commit = hub.resolve(repo, revision or "main")
        manifest = hub.fetch(repo, commit, MANIFEST)
        with naming(manifest.parent, f"{repo}@{commit}"):
            files = read_manifest(manifest.parent)["files"]
        if out.exists() and same_release(out, manifest):
            say(f"{out} is up to date with {repo}@{commit}")
            return out
        refuse_full(out)
        cached = {name: hub.fetch(repo, commit, name, entry) for name, entry in files.items()}
        with new_release(out, f"{repo}@{commit}") as part:  # verifies the copies, and their sizes
            for name, source in {MANIFEST: manifest, **cached}.items():
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, part / name)
    say(f"{out} holds {repo}@{commit}, every sha256 verified")
    return out


def pinned(repo_at_revision: str, *, repo_type: RepoType) -> tuple[str, str]:
    """A repository and the commit that it has at a revision.

    Raises:
        InputError: there is none, or the hub cannot be reached.
    """
    repo, revision = split_repo(repo_at_revision)
    hub = _Hub(None, print, repo_type)
    with hub.one_sentence(repo_at_revision):
        return repo, hub.resolve(repo, revision or "main")


def file_of(
    repo: str, commit: str, name: str, sha256: str | None, size: int, *, repo_type: RepoType
) -> Path:
    """A file of a commit, in the client's cache, beside the others of that commit.

    Args:
        sha256: that it must have; None leaves it to the hub's own.
        size: bytes that it may have at most.

    Raises:
        InputError: the hub cannot be reached, or the file is not that.
    """
    hub = _Hub(None, print, repo_type)
    with hub.one_sentence(f"{repo}@{commit}"):
        return hub.fetch(repo, commit, name, {"sha256": sha256, "bytes": size})


def _same(folder: Path, sums: Mapping[str, str], remote: Tree) -> dict[str, bool]:
    """Whether the hub's files have our content: large ones have a sha256, small ones git's hash."""

    def same(name: str) -> bool:
        entry, file = remote[name], folder / name
        if entry.lfs is not None:
            return entry.lfs.sha256 == sums[name]
        return entry.size == file.stat().st_size and entry.blob_id == git_hash(file)

    return {name: same(name) for name in sums if name in remote}


def _read_back(remote: Tree, folder: Path, sums: Mapping[str, str], shown: str) -> None:
    same = _same(folder, sums, remote)
    for name, sha256 in sums.items():
        if not same.get(name):
            raise InputError(
                f"{shown} does not have the {name} of {folder} with sha256 {sha256}: the file was "
                "changed meanwhile, or the hub ignores it (.gitignore); publish again"
            )


class _Hub:
    """The client, bound to where `HF_ENDPOINT` points now, and a token that no message shows."""

    def __init__(self, token: str | None, say: Say, repo_type: RepoType = "model") -> None:
        endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        parts = urlsplit(endpoint)
        # an address may carry a password
        self.shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(
                f"HF_ENDPOINT is {self.shown!r}; set it to an address like https://huggingface.co, "
                "or not at all"
            )
        self.endpoint, self.say, self.token = endpoint, say, token or get_token()
        self.repo_type = repo_type
        self.watch: fetch.Watch
        self.api = HfApi(endpoint=endpoint, token=self.token or False, library_name="ssld")

    def page(self, repo: str) -> str:
        """The address of a repository."""
        return f"{self.shown}/{'datasets/' if self.repo_type == 'dataset' else ''}{repo}"

    def refuse_token_in(self, folder: Path, names: Iterable[str]) -> None:
        """Of weights only the beginning is read, which holds their description."""
        for name in names if self.token else ():
            with (folder / name).open("rb") as file:
                if str(self.token).encode() in file.read(SCAN_BYTES):
                    raise InputError(f"{folder / name} holds your hub token; take it out of there")

    def head(self, repo: str, private: bool) -> str | None:
        """The commit of the main branch; None if there is no such repository."""
        try:
            info = self.api.repo_info(repo, repo_type=self.repo_type)
        except RepositoryNotFoundError as error:
            if isinstance(error, GatedRepoError):
                raise
            return None
        if private and not info.private:
            raise InputError(f"{repo} exists and is public; make it private on its page first")
        return self._commit(info.sha, repo) if info.sha is not None else None

    def _commit(self, sha: object, revision: str) -> str:
        if not isinstance(sha, str) or not COMMIT.fullmatch(sha):
            raise InputError(
                f"{self.shown} is no hub ({revision} is {str(sha)[:80]!r}); check HF_ENDPOINT"
            )
        return sha

    def tree(self, repo: str, commit: str) -> dict[str, RepoFile]:
        entries = self.api.list_repo_tree(
            repo, recursive=True, revision=commit, repo_type=self.repo_type
        )
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def stale(self, repo: str, head: str, remote: Tree, sums: Iterable[str]) -> list[Change]:
        """What the release before left there: files of others are in no `ssld.json`."""
        if MANIFEST not in remote:
            return []
        try:
            old = read_manifest(self.fetch(repo, head, MANIFEST).parent)["files"]
        except InputError:
            self.say(f"the {MANIFEST} of {repo} is damaged, so that no file there is removed")
            return []
        names = (set(old) & set(remote)) - {*sums, ".gitattributes"}
        return [Change("removed", name, remote[name].size) for name in sorted(names)]

    def commit(self, folder: Path, repo: str, changes: list[Change], head: str | None) -> str:
        """One commit on top of `head`; if someone else was faster, the hub refuses."""
        operations = [
            CommitOperationDelete(change.name, is_folder=False)
            if change.kind == "removed"
            else CommitOperationAdd(change.name, str(folder / change.name))
            for change in changes
        ]
        message = f"Publish {folder.resolve().name} with ssld"
        done = self.api.create_commit(
            repo,
            operations,
            commit_message=message,
            parent_commit=head,
            repo_type=self.repo_type,
        )
        return self._commit(done.oid, repo)

    def resolve(self, repo: str, revision: str) -> str:
        """The commit that a branch or tag is now; nothing is asked about a whole commit."""
        if COMMIT.fullmatch(revision):
            return revision
        info = self.api.repo_info(repo, revision=revision, repo_type=self.repo_type)
        return self._commit(info.sha, revision)

    def fetch(
        self, repo: str, commit: str, name: str, entry: Mapping[str, Any] | None = None
    ) -> Path:
        """A file in the client's cache, downloaded if need be, that has the right hash.

        Args:
            entry: the sha256, and the bytes at most, that it must have.
        """
        sha256 = entry["sha256"] if entry else None
        limit, self.watch.limit = self.watch.limit, entry["bytes"] if entry else self.watch.limit
        try:
            path = Path(
                self.api.hf_hub_download(repo, name, revision=commit, repo_type=self.repo_type)
            )
            refuse_outside(path)
        except RemoteEntryNotFoundError:
            raise InputError(
                f"{repo}@{commit} has no {name}; publish it there with "
                f"`{PUBLISHED_BY[self.repo_type]}`"
            ) from None
        finally:
            self.watch.limit = limit
        wanted, actual = hashes(path, sha256)
        if wanted != actual:
            forget(path)
            kind = "sha256" if len(actual) == 64 else "git hash"
            raise InputError(
                f"{name} of {repo}@{commit} is damaged: its {kind} is {actual} instead of "
                f"{wanted}; the copy in the client's cache was removed: repeat, and else "
                "publish it again"
            )
        return path

    @contextmanager
    def one_sentence(self, repo: str) -> Iterator[None]:
        """Whatever the client or the disk raises becomes an InputError, without the token; the
        connections inside are watched (`zoo/fetch.py`)."""
        try:
            with fetch.watched(self.shown, self.endpoint, fetch.ANSWER_BYTES) as self.watch:
                yield
        except InputError as error:
            raise InputError(self._scrub(str(error))) from None
        except FAILURES as error:
            # without its cause, whose text may quote the request
            raise InputError(self._scrub(sentence(error, repo, self.shown))) from None

    def _scrub(self, text: str) -> str:
        text = text.replace(self.endpoint, self.shown)
        return printable(text.replace(self.token, "***") if self.token else text)
