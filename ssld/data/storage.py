"""Local and remote files alike, through fsspec, and a cache for what is derived from them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import re
import secrets
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import fsspec

from ssld.common.errors import InputError


class Address(NamedTuple):
    """Where the bytes of an image lie, so that another manifest can point there."""

    path: str
    """An absolute path (links are not resolved) or a URL."""
    offset: int | None = None
    """First byte within the file; without a size: row of a Parquet manifest with `bytes`."""
    size: int | None = None
    """Bytes; None for a whole file or a row."""


def is_remote(path: str) -> bool:
    return re.match(r"^\w[\w+.-]*://", path) is not None


SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN"}
"""What macOS, Synology and Windows put beside pictures: thumbnails and twins, no images."""


def is_hidden(name: str) -> bool:
    """Whether a relative posix path has a part that begins with a dot (`.` and `..` do not count)
    or is a folder of the system's own."""
    if not (name.startswith(".") or "/." in name or any(x in name for x in SYSTEM_FOLDERS)):
        return False  # nearly all of them
    return any(map(hides, name.split("/")))


def hides(part: str) -> bool:
    """The same of one part of a path."""
    return part in SYSTEM_FOLDERS or (part.startswith(".") and part not in (".", ".."))


def absolute(path: str) -> str:
    """The same from any working directory; links are not resolved, URLs stay."""
    return path if is_remote(path) else os.path.abspath(path)


@contextlib.contextmanager
def _reaching(path: str, what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such {what}; check the path") from error
    except (OSError, ImportError, ValueError) as error:
        raise InputError(f"{path}: cannot be reached ({error})") from error


def stamp(path: str) -> str:
    """What changes when a file changes: size and modification time, or the store's own tag.

    Raises:
        InputError: there is no such file, or it cannot be reached.
    """
    with _reaching(path, "file"):
        if not is_remote(path):
            status = os.stat(path)
            return f"{status.st_size}/{status.st_mtime_ns}"
        filesystem, name = fsspec.url_to_fs(path)
        info = filesystem.info(name)
    tag = next((info[k] for k in ("ETag", "etag", "mtime", "LastModified") if k in info), "")
    return f"{info.get('size')}/{tag}"


def list_files(url: str) -> dict[str, int | None]:
    """Sizes, where the store knows them, of all files below a remote folder, by relative path.

    Raises:
        InputError: there is no such folder, or it cannot be reached.
    """
    with _reaching(url, "file or folder"):
        filesystem, root = fsspec.url_to_fs(url)
        files = filesystem.find(root, detail=True)
        if not files and not filesystem.exists(root):  # an object store has no empty folders
            raise FileNotFoundError(url)
    if len(files) == 1 and root in files:
        raise InputError(f"{url}: not a folder, a .parquet manifest or .tar shards")
    folder = root.rstrip("/") + "/"
    return {name.removeprefix(folder): info.get("size") for name, info in files.items()}


def match_files(pattern: str) -> list[str]:
    """Sorted URLs that match a remote pattern (`*`, `?`, `[...]`), without hidden ones.

    Raises:
        InputError: it cannot be reached.
    """
    # The URL's own beginning, not the filesystem's way to write it: it goes into addresses.
    base = re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")[0] + "/"
    with _reaching(pattern, "file or folder"):
        filesystem, name = fsspec.url_to_fs(pattern)
        folder = fsspec.url_to_fs(base)[1].rstrip("/") + "/"
        # A name may look like a pattern.
        files = [name] if filesystem.exists(name) else sorted(filesystem.glob(name))
    names = [name.removeprefix(folder) for name in files]
    return [base + name for name in names if not is_hidden(name)]


def read_range(path: str, start: int, size: int) -> bytes:
    """Bytes [start, start + size) of a file. Raises OSError, also when the file is shorter."""
    if is_remote(path):
        filesystem, name = fsspec.url_to_fs(path)
        data = filesystem.cat_file(name, start=start, end=start + size)
    else:
        with open(path, "rb") as file:
            data = os.pread(file.fileno(), size, start)
    if len(data) != size:
        raise OSError(f"ends after {start + len(data)} bytes, {start + size} were expected")
    return data


def read_all(path: str) -> bytes:
    """A whole file. Raises OSError, also of what is none: a device or a pipe may never end."""
    if is_remote(path):
        filesystem, name = fsspec.url_to_fs(path)
        return filesystem.cat_file(name)
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path} is no file but a device or a pipe")
        return file.read()


def _without_waiting(path: str, flags: int) -> int:
    """A pipe that nobody writes to would be waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


class CacheError(InputError):
    """The cache cannot be written."""


def derived(
    path: str, kind: str, make: Callable[[Path], None], *, content: str | None = None
) -> Path:
    """A file that `make` derives from `path` once: `<cache>/ssld/<digest>.<kind>`.

    It lies in $XDG_CACHE_HOME or ~/.cache, is made anew when `path` changes, and appears whole. Of
    the processes of one machine that want it one makes it, and the others wait for it.

    Args:
        content: what the file depends on, instead of the path, its size and its time.

    Raises:
        CacheError: the cache folder cannot be made or written, or is full.
    """
    content = f"{absolute(path)}/{stamp(path)}" if content is None else content
    key = hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssld"
    target = cache / f"{key}.{kind}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if not target.is_file():
            with _alone(cache / f".{key}.{kind}.lock"):
                if not target.is_file():
                    _make(target, make)
    except OSError as error:
        if error.errno not in _CACHE_ERRORS:
            raise
        raise CacheError(
            f"{cache}: the cache cannot be written ({error.strerror}); free space there, or set "
            "XDG_CACHE_HOME to another writable folder"
        ) from error
    return target


_CACHE_ERRORS = (
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)
_LEFT_SECONDS = 24 * 3600.0
"""After which another machine's half-made file, in a cache that machines share, is nobody's."""


def _make(target: Path, make: Callable[[Path], None]) -> None:
    """Make `target` under a name of its own, and clear away what killed processes left of it."""
    host = socket.gethostname()
    for left in target.parent.glob(f".{target.name}.*.part"):
        with contextlib.suppress(OSError):
            # Who made it on this machine is dead: it held the lock that this process holds.
            ours = left.name.startswith(f".{target.name}.{host}.")
            if ours or time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                left.unlink()
    name = f".{target.name}.{host}.{os.getpid()}.{secrets.token_hex(4)}.part"
    temporary = target.parent / name
    try:
        make(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock that dies with the process; its file is gone afterwards."""
    while True:
        file = open(lock, "wb")
        try:
            _lock(file)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                file.close()
                raise
            # A file system without locks: names are unique, so the worst is work done twice.
        try:
            if os.fstat(file.fileno()).st_ino == os.stat(lock).st_ino:
                break
        except FileNotFoundError:
            pass  # whoever had it removed it: the next one is another file
        file.close()
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        file.close()


def _lock(file: IO[bytes]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say_waiting()
        fcntl.flock(file, fcntl.LOCK_EX)


@functools.cache
def _say_waiting() -> None:
    """Once: a folder of shards has thousands of indices."""
    print("waiting for another process, which reads the source once for all", file=sys.stderr)


def is_text(name: str) -> bool:
    """Whether a name is UTF-8, so that manifests, logs and tables can hold it."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
