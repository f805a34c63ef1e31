"""Local and remote files alike, through fsspec, and a cache for what is derived from them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import fsspec

from ssld.errors import InputError


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


def is_hidden(name: str) -> bool:
    """Whether a relative posix path has a part that begins with a dot."""
    return name.startswith(".") or "/." in name


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
        found = filesystem.find(root, detail=True)
        if not found and not filesystem.exists(root):  # an object store has no empty folders
            raise FileNotFoundError(url)
    if len(found) == 1 and root in found:
        raise InputError(f"{url}: not a folder, a .parquet manifest or .tar shards")
    folder = root.rstrip("/") + "/"
    return {name.removeprefix(folder): info.get("size") for name, info in found.items()}


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
        found = [name] if filesystem.exists(name) else sorted(filesystem.glob(name))
    names = [name.removeprefix(folder) for name in found]
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
    """A whole file. Raises OSError."""
    if is_remote(path):
        filesystem, name = fsspec.url_to_fs(path)
        return filesystem.cat_file(name)
    return Path(path).read_bytes()


def derived(path: str, kind: str, make: Callable[[Path], None]) -> Path:
    """A file that `make` derives from `path` once: `<cache>/ssld/<digest>.<kind>`.

    It lies in $XDG_CACHE_HOME or ~/.cache, is made anew when `path` changes, and appears whole.
    """
    key = hashlib.sha256(f"{absolute(path)}/{stamp(path)}".encode()).hexdigest()[:24]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssld"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{cache}: the cache folder cannot be made ({error.strerror}); set XDG_CACHE_HOME to a "
            "writable folder"
        ) from error
    target = cache / f"{key}.{kind}"
    if not target.is_file():
        temporary = cache / f".{key}.{kind}.{os.getpid()}"
        try:
            make(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    return target
