"""Releases to and from a Hugging Face hub, or a server that speaks like one (`HF_ENDPOINT`).

Content decides, not names or times: a file goes up only if the hub has another sha256 (or git hash,
for what it keeps in git), all in one commit on top of the one that was compared. And what comes
down is hashed, because the client itself accepts wrong content of the right size, for ever.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import unified_diff
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from zoo.errors import InputError
from zoo.release import MANIFEST, naming, read_manifest, same_release, sha256_of, staging, verify

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    Tree = Mapping[str, RepoFile]

Say = Callable[[str], object]
COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")
DIFF_BYTES = 1 << 16
SCAN_BYTES = 1 << 24
DETAIL_CHARACTERS = 300
WRAPPERS = (RuntimeError, FileNotFoundError)  # of the client, the reason is their cause
SIGNS = {"added": "+", "changed": "~", "removed": "-"}
ADVICE = {
    401: "give a valid token by HF_TOKEN or `hf auth login`",
    402: "see the plan of that account",
    403: "give a token that may write there, by HF_TOKEN or `hf auth login`",
    409: "someone else changed it at the same time, so repeat",
    412: "someone else changed it at the same time, so repeat",
    429: "wait some minutes and repeat",
}


@dataclass(frozen=True)
class Change:
    """One file that publishing changes on the hub; `diff` only in a dry run, of small texts."""

    kind: Literal["added", "changed", "removed"]
    name: str
    bytes: int
    diff: str = ""


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
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repo, at, revision = text.partition("@")
    try:
        validate_repo_id(repo)
        sound = repo.isascii() and repo.count("/") == 1
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
    repo, revision = split_repo(repo)
    if revision:
        raise InputError(f"a release goes to the main branch of {repo}; leave out @{revision}")
    manifest = verify(folder)
    sums = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    sums[MANIFEST] = sha256_of(folder / MANIFEST)
    hub = _Hub(token, say)
    hub.refuse_token_in(folder, sums)
    with hub.one_sentence(repo):
        head = hub.head(repo, private)
        if head is None and not dry_run:
            hub.api.create_repo(repo, private=private or None, exist_ok=True)
            say(f"created {hub.shown}/{repo}")
            head = hub.head(repo, private)
        remote = hub.tree(repo, head) if head else {}
        changes = _changes(folder, sums, remote)
        if changes and head:
            changes += hub.stale(repo, head, remote, sums)
        if dry_run and head:
            changes = [_with_diff(hub, change, folder, repo, head, remote) for change in changes]
        _tell(say, changes, f"{hub.shown}/{repo}", dry_run)
        if changes and not dry_run:
            head = hub.commit(folder, repo, changes, head)
            _read_back(hub.tree(repo, head), folder, sums, f"{repo}@{head}")
            say(f"{repo}@{head} holds this release, every sha256 compared")
    return Published(f"{hub.shown}/{repo}/tree/{head or 'main'}", repo, head or "", tuple(changes))


def pull(repo_at_revision: str, out: Path, *, token: str | None = None, say: Say = print) -> Path:
    """Put the release that a repository has at a revision into `out`, once all of it is verified.

    Raises:
        InputError: there is no such release, the hub cannot be reached, a file is not what
            `ssld.json` says, or `out` holds something else.
    """
    repo, revision = split_repo(repo_at_revision)
    out = out.resolve()
    if not (out / MANIFEST).is_file():
        _refuse_full(out)  # before anything is downloaded
    hub = _Hub(token, say)
    with hub.one_sentence(repo_at_revision):
        commit = hub.resolve(repo, revision or "main")
        manifest = hub.fetch(repo, commit, MANIFEST)
        with naming(manifest.parent, f"{repo}@{commit}"):
            files = read_manifest(manifest.parent)["files"]
        if out.exists() and same_release(out, manifest):
            say(f"{out} is up to date with {repo}@{commit}")
            return out
        _refuse_full(out)
        cached = {MANIFEST: manifest}
        for name, entry in files.items():
            cached[name] = hub.fetch(repo, commit, name, entry["sha256"])
        with staging(out) as part:
            for name, source in cached.items():
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, part / name)
            with naming(part, f"{repo}@{commit}"):
                verify(part)  # the copies, and their sizes
            part.rename(out)
    say(f"{out} holds {repo}@{commit}, every sha256 verified")
    return out


def _refuse_full(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and holds something else; give a new or an empty folder")


def _changes(folder: Path, sums: Mapping[str, str], remote: Tree) -> list[Change]:
    changes = []
    for name, sha256 in sorted(sums.items()):
        kind = "changed" if name in remote else "added"
        if kind == "added" or not _same(folder / name, sha256, remote[name]):
            changes.append(Change(kind, name, (folder / name).stat().st_size))
    return changes


def _same(file: Path, sha256: str, remote: RepoFile) -> bool:
    """Whether the hub has this content: it knows large files by sha256, small ones by git hash."""
    if remote.lfs is not None:
        return remote.lfs.sha256 == sha256
    return remote.size == file.stat().st_size and remote.blob_id == _git_hash(file)


def _git_hash(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _read_back(remote: Tree, folder: Path, sums: Mapping[str, str], shown: str) -> None:
    for name, sha256 in sums.items():
        if name not in remote or not _same(folder / name, sha256, remote[name]):
            raise InputError(
                f"{shown} does not have the {name} of {folder} with sha256 {sha256}: the file was "
                "changed meanwhile, or the hub ignores it (.gitignore); publish again"
            )


def _with_diff(
    hub: _Hub, change: Change, folder: Path, repo: str, head: str, remote: Tree
) -> Change:
    """The same with what is different, if both are small texts."""
    if change.kind != "changed" or max(change.bytes, remote[change.name].size) > DIFF_BYTES:
        return change
    new = folder / change.name
    try:
        after = new.read_text(encoding="utf-8").splitlines()
        before = hub.fetch(repo, head, change.name).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return change
    names = (f"{repo}@{head[:12]}/{change.name}", f"new/{change.name}")
    return replace(change, diff="\n".join(unified_diff(before, after, *names, lineterm="")))


def _tell(say: Say, changes: list[Change], url: str, dry_run: bool) -> None:
    if not changes:
        say(f"{url} already holds this release; nothing to do")
    else:
        say(f"{url} {'would get' if dry_run else 'gets'} {len(changes)} changes:")
    for change in changes:
        say(f"  {SIGNS[change.kind]} {change.name} ({change.bytes:,} bytes {change.kind})")
    for change in filter(lambda change: change.diff, changes):
        say(change.diff)


class _Hub:
    """The client, bound to where `HF_ENDPOINT` points now, and a token that no message shows."""

    def __init__(self, token: str | None, say: Say) -> None:
        from huggingface_hub import HfApi, constants, get_token

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
        self.api: HfApi = HfApi(endpoint=endpoint, token=self.token or False, library_name="ssld")

    def refuse_token_in(self, folder: Path, names: Iterable[str]) -> None:
        """Of weights only the beginning is read, which holds their description."""
        for name in names if self.token else ():
            with (folder / name).open("rb") as file:
                if str(self.token).encode() in file.read(SCAN_BYTES):
                    raise InputError(f"{folder / name} holds your hub token; take it out of there")

    def head(self, repo: str, private: bool) -> str | None:
        """The commit of the main branch; None if there is no such repository."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        try:
            info = self.api.model_info(repo)
        except RepositoryNotFoundError as error:
            if isinstance(error, GatedRepoError):
                raise
            return None
        if private and not info.private:
            raise InputError(f"{repo} exists and is public; make it private on its page first")
        return info.sha

    def tree(self, repo: str, commit: str) -> dict[str, RepoFile]:
        from huggingface_hub.hf_api import RepoFile

        entries = self.api.list_repo_tree(repo, recursive=True, revision=commit)
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
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations = [
            CommitOperationDelete(change.name, is_folder=False)
            if change.kind == "removed"
            else CommitOperationAdd(change.name, str(folder / change.name))
            for change in changes
        ]
        message = f"Publish {folder.resolve().name} with ssld"
        done = self.api.create_commit(repo, operations, commit_message=message, parent_commit=head)
        return done.oid

    def resolve(self, repo: str, revision: str) -> str:
        """The commit that a branch or tag is now; nothing is asked about a whole commit."""
        if COMMIT.fullmatch(revision):
            return revision
        commit = str(self.api.model_info(repo, revision=revision).sha)
        if not COMMIT.fullmatch(commit):
            raise InputError(f"{self.shown} is no hub ({revision} is {commit}); check HF_ENDPOINT")
        return commit

    def fetch(self, repo: str, commit: str, name: str, sha256: str | None = None) -> Path:
        """A file in the client's cache, downloaded if need be, that has the right hash."""
        from huggingface_hub.errors import RemoteEntryNotFoundError

        try:
            path = Path(self.api.hf_hub_download(repo, name, revision=commit))
        except RemoteEntryNotFoundError:
            raise InputError(
                f"{repo}@{commit} has no {name}; publish it there with `ssld zoo publish`"
            ) from None
        wanted, found = _hashes(path, sha256)
        if wanted != found:
            _forget(path)
            kind = "sha256" if len(found) == 64 else "git hash"
            raise InputError(
                f"{name} of {repo}@{commit} is damaged: its {kind} is {found} instead of {wanted}; "
                "the copy in the client's cache was removed: repeat, and else publish it again"
            )
        return path

    @contextmanager
    def one_sentence(self, repo: str) -> Iterator[None]:
        """Whatever the client or the disk raises becomes an InputError, without the token."""
        from httpx2 import HTTPError
        from huggingface_hub.errors import XetDownloadError

        try:
            yield
        except InputError as error:
            raise InputError(self._scrub(str(error))) from None
        except (HTTPError, XetDownloadError, OSError, ValueError, RuntimeError) as error:
            # without its cause, whose text may quote the request
            raise InputError(self._scrub(_sentence(error, repo, self.shown))) from None

    def _scrub(self, text: str) -> str:
        text = text.replace(self.endpoint, self.shown)
        return text.replace(self.token, "***") if self.token else text


def _hashes(path: Path, sha256: str | None) -> tuple[str, str]:
    """The hash that a cached file should have, and has. Without a sha256, what the hub called it
    when it was downloaded, which the cache keeps as the name of the file behind the link."""
    name = Path(os.readlink(path)).name if path.is_symlink() else ""
    if sha256 is None and COMMIT.fullmatch(name):
        return name, _git_hash(path)
    found = sha256_of(path)
    wanted = name if re.fullmatch("[0-9a-f]{64}", name) else found
    return sha256 or wanted, found


def _forget(path: Path) -> None:
    """Remove a cached file with all that its links lead to, else it is never downloaded again."""
    while path.is_symlink():
        behind = path.parent / os.readlink(path)
        path.unlink()
        path = behind
    path.unlink(missing_ok=True)


def _sentence(error: Exception, repo: str, endpoint: str) -> str:
    """What was wrong, where, and what to do."""
    import httpx2
    from huggingface_hub import errors

    while isinstance(error, WRAPPERS) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    where = f"{repo} on {endpoint}"
    detail = " ".join(str(error).split())[:DETAIL_CHARACTERS]
    if isinstance(error, errors.GatedRepoError):
        return f"{where} is gated; ask for access on its page, then give the token of that account"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no {where}, or it is private; check the name and HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"there is no such revision: {where}; give a branch, a tag or a whole commit"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        advice = ADVICE.get(status, "try again later" if status >= 500 else "see its message")
        return f"{where} was refused with status {status} ({detail}); {advice}"
    if isinstance(error, (httpx2.HTTPError, ConnectionError, errors.LocalEntryNotFoundError)):
        kind = type(error).__name__
        return f"no connection for {where} ({kind}: {detail}); check the network and repeat"
    return f"{where} failed ({detail}); mend that and repeat"
