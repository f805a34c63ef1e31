"""Local and remote files alike, through fsspec, and a cache for what is derived from them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import fsspec

from ssld.errors import InputError


def is_remote(path: str) -> bool:
    return re.match(r"^\w[\w+.-]*://", path) is not None


def stamp(path: str) -> str:
    """What changes when a file changes: size and modification time, or the store's own tag.

    Raises:
        InputError: there is no such file.
    """
    try:
        if not is_remote(path):
            status = os.stat(path)
            return f"{status.st_size}/{status.st_mtime_ns}"
        filesystem, name = fsspec.url_to_fs(path)
        info = filesystem.info(name)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except (OSError, ImportError, ValueError) as error:
        raise InputError(f"{path}: cannot be reached ({error})") from error
    tag = next((info[k] for k in ("ETag", "etag", "mtime", "LastModified") if k in info), "")
    return f"{info.get('size')}/{tag}"


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
    name = path if is_remote(path) else os.path.abspath(path)
    key = hashlib.sha256(f"{name}/{stamp(path)}".encode()).hexdigest()[:24]
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
