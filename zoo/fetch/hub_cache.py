"""What huggingface_hub keeps on this machine: which hash a file should have, and taking it out."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from huggingface_hub import constants

from zoo.errors import InputError
from zoo.release import sha256_of

COMMIT = re.compile(r"[0-9a-f]{40}")


def git_hash(file: Path) -> str:
    """What git calls the content."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def hashes(path: Path, sha256: str | None) -> tuple[str, str]:
    """The hash that a cached file should have, and has. Without a sha256, what the hub called it
    when it was downloaded, which the cache keeps as the name of the file behind the link."""
    name = Path(os.readlink(path)).name if path.is_symlink() else ""
    if sha256 is None and COMMIT.fullmatch(name):
        return name, git_hash(path)
    actual = sha256_of(path)
    wanted = name if re.fullmatch("[0-9a-f]{64}", name) else actual
    return sha256 or wanted, actual


def refuse_outside(path: Path) -> None:
    """Links of the client's cache that lead out of it are never followed, neither to read nor to
    remove: an old one may be there since before hubs' headers were looked at."""
    cache = Path(constants.HF_HUB_CACHE).resolve()
    if cache not in path.resolve().parents or not path.is_file():
        raise InputError(
            f"{path} in the cache of huggingface_hub, the client, leads to {path.resolve()}, which "
            "is no file inside the cache: the client made it so for a hub that it should not have "
            "believed; look at it, remove the link by hand and use another hub"
        )


def forget(path: Path) -> None:
    """Remove a cached file with what its link leads to, else it is never downloaded again."""
    for file in (path, path.resolve()):
        file.unlink(missing_ok=True)
