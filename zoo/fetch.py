"""How long a server may take, and what its answers may say.

huggingface_hub waits for ever in most of its calls, starts its count of retries anew with every
byte, sleeps as long as a server says, and makes paths of headers: an `ETag` of `../../x` is a file
outside of its cache. So its connections are made by a `Watch` here, which gives up what does not
get on, and refuses such headers before the client sees them. Not watched is the Rust client of Xet
storage, which is for huggingface.co alone therefore.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import urlsplit
from weakref import WeakSet

from huggingface_hub import constants, errors, set_client_factory
from huggingface_hub.utils import _http
from safetensors import SafetensorError

from zoo.errors import InputError, one_line
from zoo.release import sha256_of

# Of whose clients there are hooks is what huggingface_hub imports: httpx in 1.x, httpx2 in 2.x.
if TYPE_CHECKING:
    import httpx2 as httpx
else:
    httpx = _http.httpx2 if hasattr(_http, "httpx2") else _http.httpx

SECONDS = 60.0
"""What neither ends nor moves STEP_BYTES in so many seconds is given up: about 1 kB a second."""
STEP_BYTES = 1 << 16
ANSWER_BYTES = 1 << 26
"""Of an answer that is no file."""
CONNECTIONS = 4
"""Tries to connect after which a server that never was reached is not tried again: the client would
sleep for 23 s at each file, and says nothing of it. One that was reached gets all its tries."""
CONNECT_SECONDS = 10.0
"""Of one such try, where nothing answers at all."""
REQUESTS = 10_000
"""In one `watched` block: a list of files may go on for ever."""
PACKED = 1000
"""How many times larger an answer may become when it is unpacked, which nobody asked for."""
_OWN = ("huggingface.co", "hf.co")


class NoConnection(errors.OfflineModeIsEnabled):
    """What the client takes as a reason to look into its cache, and not for one to wait."""


class Watch:
    """The connections of one command, given up together where one of them stands still."""

    def __init__(self, whose: str, limit: int | None) -> None:
        self.whose = whose
        self.limit = limit
        """Bytes that an answer may have, any number if None."""
        self._problem = ""
        self._since: float | None = None
        self._moved = self._requests = 0
        self._failed: int | None = 0
        """Tries to connect that failed; None as soon as one did not."""
        self._failure = ""
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def client(self, client: httpx.Client) -> httpx.Client:
        """The same client, watched."""
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], self._before],
            "response": [*hooks["response"], self._after],
        }
        return client

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    def moved(self, count: int) -> None:
        """So many bytes came or went."""
        with self._lock:
            self._moved += count
            if self._moved >= STEP_BYTES:
                self._moved, self._since = 0, time.monotonic()

    def ended(self) -> None:
        """An answer came to its end."""
        with self._lock:
            self._moved, self._since = 0, None

    def check(self) -> None:
        """Raises InputError where something was given up."""
        if self._problem:
            raise InputError(self._problem)

    def _before(self, request: httpx.Request) -> None:
        self.check()
        self._requests += 1
        if self._requests > REQUESTS:
            raise InputError(f"{self.whose} was asked {REQUESTS:,} times and goes on: check it")
        if (self._failed or 0) >= CONNECTIONS:
            raise NoConnection(f"no connection in {self._failed} tries: {self._failure}")
        with self._lock:
            self._since = self._since or time.monotonic()
        timeout = request.extensions.get("timeout") or {}
        names = ("connect", "read", "write", "pool")
        request.extensions = {
            **request.extensions,
            "trace": self._trace,
            # later than the watch itself, which can say more
            "timeout": {name: timeout.get(name) or 2 * SECONDS for name in names}
            | {"connect": min(timeout.get("connect") or CONNECT_SECONDS, CONNECT_SECONDS)},
        }
        request.headers["Accept-Encoding"] = "identity"
        if isinstance(request.stream, httpx.SyncByteStream):
            request.stream = _Counted(request.stream, self)

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith("connect_tcp.failed") and self._failed is not None:
            self._failed, self._failure = self._failed + 1, str(info["exception"])
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._failed = None
            connection = info["return_value"].get_extra_info("socket")
            if connection is not None:
                self._sockets.add(connection)

    def _after(self, response: httpx.Response) -> None:
        self.check()
        if response.request.method == "HEAD":
            for name in ("X-Repo-Commit", "ETag", "X-Linked-ETag"):
                self._refuse_path(name, response.headers.get(name, ""))
        elif response.status_code == 404:  # its commit becomes a path, too
            self._refuse_path("X-Repo-Commit", response.headers.get("X-Repo-Commit", ""))
        for name in ("Retry-After", "RateLimit"):  # how long the client would sleep
            if any(len(x) > 9 or int(x) > SECONDS for x in _digits(response.headers.get(name))):
                del response.headers[name]
        limit = self.limit
        if response.headers.get("Content-Encoding", "identity") != "identity":
            limit = (limit or ANSWER_BYTES) // PACKED
        assert isinstance(response.stream, httpx.SyncByteStream)
        response.stream = _Counted(response.stream, self, limit, answer=True)

    def _refuse_path(self, name: str, value: str) -> None:
        plain = value.replace("\\", "/")
        read = plain.lstrip("W/").strip('"')  # as the client reads an ETag
        lead = plain.startswith("/") or read.startswith("/")
        if lead or {".", ".."} & {*plain.split("/"), *read.split("/")} or not plain.isprintable():
            raise InputError(
                f"{self.whose} answers with {name} {value[:80]!r}, of which huggingface_hub, its "
                "client, would make a path outside of its cache; nothing was written or removed: "
                "do not use this server, and report it"
            )

    def _look(self) -> None:
        while not self._end.wait(SECONDS / 10):
            with self._lock:
                late = self._since is not None and time.monotonic() - self._since > SECONDS
            if late and not self._problem:
                self._problem = (
                    f"{self.whose} is too slow: within {SECONDS:g} s it neither ended an answer "
                    f"nor moved {STEP_BYTES >> 10} kB; check the network, or repeat later"
                )
                for connection in list(self._sockets):
                    try:  # not TLS's own, which the reading thread would trip over
                        socket.socket.shutdown(connection, socket.SHUT_RDWR)
                    except OSError:
                        pass  # closed meanwhile


class _Counted(httpx.SyncByteStream):
    """A body, watched as it comes or goes."""

    def __init__(
        self,
        stream: httpx.SyncByteStream,
        watch: Watch,
        limit: int | None = None,
        *,
        answer: bool = False,
    ) -> None:
        self._stream, self._watch, self._limit, self._answer = stream, watch, limit, answer
        self._broken = False

    def __iter__(self) -> Iterator[bytes]:
        total = 0
        try:
            for part in self._stream:
                total += len(part)
                if self._limit is not None and total > self._limit:
                    raise InputError(
                        f"{self._watch.whose} sends more than the {self._limit:,} bytes that this "
                        "answer may have; nothing of it was kept: check the address"
                    )
                self._watch.moved(len(part))
                yield part
        except GeneratorExit:
            raise
        except BaseException:
            self._broken = True
            self._watch.check()
            raise

    def close(self) -> None:
        self._stream.close()
        if self._answer and not self._broken:  # a try that failed is no end
            self._watch.ended()


def _digits(text: str | None) -> list[str]:
    return re.findall(r"[0-9]+", text or "")


@contextmanager
def watched(whose: str, endpoint: str | None = None, limit: int | None = None) -> Iterator[Watch]:
    """Watch whatever huggingface_hub asks for inside.

    Args:
        whose: what messages call the server.
        endpoint: its address, by default where the client asks.
        limit: bytes that an answer may have.

    Raises:
        InputError: a transfer stands still (SECONDS), an answer has no end, or a header is a path.
    """
    quiet = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)  # torch.hub, which timm asks for some, sets none
    watch, before = Watch(whose, limit), _http._GLOBAL_CLIENT_FACTORY
    xet = constants.HF_HUB_DISABLE_XET
    host = urlsplit(endpoint or constants.ENDPOINT).hostname or ""
    if host not in _OWN and not host.endswith(tuple(f".{name}" for name in _OWN)):
        constants.HF_HUB_DISABLE_XET = True
    set_client_factory(lambda: watch.client(before()))
    watch.start()
    try:
        yield watch
    except Exception:
        watch.check()  # that it was given up says more than how the client met it
        raise
    finally:
        watch.stop()
        socket.setdefaulttimeout(quiet)
        set_client_factory(before)
        constants.HF_HUB_DISABLE_XET = xet


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


DETAIL_CHARACTERS = 300
WRAPPERS = (RuntimeError, FileNotFoundError)  # of the client, the reason is their cause
NO_HUB = (JSONDecodeError, TypeError, KeyError, AttributeError, IndexError, AssertionError)
"""What the client raises at answers that it did not expect: `null`, `[1]`, a page."""
ADVICE = {
    401: "give a valid token by HF_TOKEN or `hf auth login`",
    402: "see the plan of that account",
    403: "give a token that may write there, by HF_TOKEN or `hf auth login`",
    409: "someone else changed it at the same time, so repeat",
    412: "someone else changed it at the same time, so repeat",
    429: "wait some minutes and repeat",
}


FAILURES = (
    *(httpx.HTTPError, httpx.InvalidURL, errors.XetDownloadError, OSError),
    *(SafetensorError, UnpicklingError, ValueError, RuntimeError, *NO_HUB),
)
"""What a command that talks to a hub can fail with, by the network, the hub, the disk, or what
came from there."""


def unreachable(error: BaseException) -> str | None:
    """Why neither the hub nor the client's cache has something, where that is what an error means;
    the client says so in four sentences."""
    kinds = (httpx.HTTPError, ConnectionError, errors.LocalEntryNotFoundError, URLError)
    if not isinstance(error, kinds):
        return None
    why = f"{constants.ENDPOINT} gives no answer, {one_line(error.__cause__ or error, 100)}"
    why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else why
    return f"{why}, and it is not in the cache {constants.HF_HUB_CACHE}"


def sentence(error: Exception, repo: str, endpoint: str) -> str:
    """What was wrong, where, and what to do."""
    while isinstance(error, WRAPPERS) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    where = f"{repo} on {endpoint}"
    detail = one_line(error, DETAIL_CHARACTERS)
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, NO_HUB):
        kind = type(error).__name__
        return f"{where} answers what no hub does ({kind}: {detail}); check HF_ENDPOINT and repeat"
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
    if isinstance(error, (httpx.HTTPError, ConnectionError, errors.LocalEntryNotFoundError)):
        kind = type(error).__name__
        return f"no connection for {where} ({kind}: {detail}); check the network and repeat"
    return f"{where} failed ({detail}); mend that and repeat"
