"""From a name of the catalogue to a verified safetensors file on this machine, and to a network.

    folder or hub or address -> sha256 -> conversion -> every tensor used -> cache -> sha256 again

The first use of a weight writes down what came (`NAME.pin.json`, beside the cached file); anything
else under the same name is refused from then on, also after the cached file was deleted. A warm
cache makes no request.

Environment: `SSLD_ZOO_DIR`, a folder with the published files (or with what `ssld zoo bundle`
packed), for sites without internet: nothing is ever downloaded when it is set. `SSLD_ZOO_CACHE`,
where converted weights are kept, by default `~/.cache/ssld/zoo`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
from filelock import FileLock
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from zoo.catalog import Entry, catalog, find
from zoo.errors import InputError, one_line
from zoo.fetch import FAILURES, httpx, refuse_outside, watched
from zoo.paddle.convert import check, convert
from zoo.paddle.pickle_file import read_pdparams
from zoo.release import naming, save_weights, sha256_of, verify

DIR_VARIABLE = "SSLD_ZOO_DIR"
CACHE_VARIABLE = "SSLD_ZOO_CACHE"
_WEIGHTS = "model.safetensors"
_FILE_BYTES = 1 << 32
"""No published file has as many."""


@dataclass(frozen=True)
class Pin:
    """What a name stood for when it was first used."""

    source: str
    """File or address that it came from."""
    source_sha256: str
    """Digest of that file as it came."""
    sha256: str
    """Digest of the converted file in the cache."""


def cache_folder(cache: str | os.PathLike[str] | None = None) -> Path:
    """The given folder, else `SSLD_ZOO_CACHE`, else `~/.cache/ssld/zoo`."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ssld" / "zoo"
    return Path(cache or os.environ.get(CACHE_VARIABLE) or default).expanduser()


def weights_file(
    entry: Entry,
    *,
    cache: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Path:
    """The entry's weights for its timm architecture, fetched and converted at first use.

    Args:
        cache: see `cache_folder`.
        folder: where published files lie; by default what `SSLD_ZOO_DIR` says, else they are
            downloaded.

    Raises:
        InputError: there are none, they cannot be had, or are not what was pinned.
    """
    home = cache_folder(cache)
    cached = _cached(entry, home)  # without a lock: the cache may be read-only
    if cached:
        return cached
    if not entry.url:
        raise InputError(
            f"no weights of {entry.name} were ever published; build it with pretrained=False"
        )
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / f"{entry.name}.lock"):  # the processes of a run ask at the same time
            return _cached(entry, home) or _fetch(entry, home, folder)
    except OSError as error:
        raise InputError(
            f"{home} cannot be written ({error.strerror or error}); free space there, or name "
            f"another folder in {CACHE_VARIABLE}"
        ) from error


def _cached(entry: Entry, home: Path) -> Path | None:
    file, pin_file = home / entry.name / _WEIGHTS, home / f"{entry.name}.pin.json"
    pin = _read_pin(pin_file)
    if not pin or not file.is_file():
        return None
    sha256 = sha256_of(file)
    if sha256 != pin.sha256:
        raise InputError(
            f"{file} was changed: its sha256 is {sha256}, but {pin.sha256} is pinned by "
            f"{pin_file}; delete the file, and it is fetched anew"
        )
    return file


def _fetch(entry: Entry, home: Path, folder: str | os.PathLike[str] | None) -> Path:
    pin_file, cached = home / f"{entry.name}.pin.json", home / entry.name / _WEIGHTS
    for left in home.glob(f".{entry.name}~*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=f".{entry.name}~") as temporary:
        source, where = _source(entry, folder, Path(temporary))
        digest = sha256_of(source)
        if entry.sha256 and source.suffix == ".pdparams":
            _require_same(where, digest, entry.sha256, "the catalogue")
        converted = Path(temporary) / _WEIGHTS
        _convert(entry, source, where, converted)
        pin, new = _read_pin(pin_file), Pin(where, digest, sha256_of(converted))
        if pin and new.sha256 != pin.sha256:  # else it came another way, and is the same
            _require_same(where, digest, pin.source_sha256, str(pin_file))
        written = Path(temporary) / pin_file.name
        written.write_text(json.dumps(asdict(new), indent=2) + "\n", encoding="utf-8")
        written.replace(pin_file)
        cached.parent.mkdir(exist_ok=True)
        converted.replace(cached)
    return cached


def _convert(entry: Entry, source: Path, where: str, out: Path) -> None:
    if source.suffix == ".safetensors":
        try:
            weights = load_file(source)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{where} cannot be read ({error}); fetch it anew") from error
        check(weights, entry, where)
    else:
        with naming(source, where):
            weights = convert(read_pdparams(source), entry.paddle_class, where)
    save_weights(weights, out)


def _source(
    entry: Entry, folder: str | os.PathLike[str] | None, temporary: Path
) -> tuple[Path, str]:
    """-> file with the weights, and what to call it."""
    folder = folder or os.environ.get(DIR_VARIABLE)
    if folder:
        return _in_folder(entry, Path(folder).expanduser())
    if entry.timm_weights:
        return _from_timm(entry)
    file = temporary / str(entry.file)
    _download(entry, file)
    return file, str(entry.url)


def _in_folder(entry: Entry, folder: Path) -> tuple[Path, str]:
    if not folder.is_dir():
        raise InputError(f"{DIR_VARIABLE}: {folder} is no folder")
    release = folder / entry.name
    if release.is_dir():
        verify(release)
        return release / _WEIGHTS, str(release / _WEIGHTS)
    places = [urlsplit(str(entry.url)).path.lstrip("/")]
    if sum(other.file == entry.file for other in catalog().values()) == 1:
        places.append(str(entry.file))  # else the name alone does not say which weights it holds
    for place in places:
        if (folder / place).is_file():
            return folder / place, str(folder / place)
    raise InputError(
        f"{folder} ({DIR_VARIABLE}) has neither {' nor '.join(places)} nor a folder {entry.name}; "
        f"fetch {entry.url} on another machine, or use `ssld zoo bundle` there"
    )


def _from_timm(entry: Entry) -> tuple[Path, str]:
    """timm's own copy of the same weights; the hub's client keeps and resumes the download."""
    repo = f"timm/{entry.timm_weights}"
    try:
        with watched(f"hf-hub:{repo}"):
            file = Path(hf_hub_download(repo, _WEIGHTS, revision=entry.revision))
            refuse_outside(file)
    except FAILURES as error:
        raise _unreachable(entry, f"hf-hub:{repo}", error) from error
    return file, f"hf-hub:{repo}/{_WEIGHTS}"


def _download(entry: Entry, file: Path) -> None:
    url = str(entry.url)
    try:
        with (
            watched(url, limit=_FILE_BYTES) as watch,
            # the watch has a timeout of its own
            watch.client(httpx.Client(follow_redirects=True, timeout=None)) as client,
        ):
            with client.stream("GET", url) as answer, file.open("wb") as out:
                answer.raise_for_status()
                total = int(answer.headers.get("Content-Length", 0)) or None
                what = {"unit": "B", "unit_scale": True, "desc": file.name}
                with tqdm(total=total, disable=None, **what) as progress:  # on a terminal
                    for part in answer.iter_bytes():
                        progress.update(out.write(part))
    except FAILURES as error:
        raise _unreachable(entry, url, error) from error


def _unreachable(entry: Entry, address: str, error: Exception) -> InputError:
    return InputError(
        f"{entry.name} cannot be fetched from {address} ({one_line(error, 200)}); check the "
        f"network, or put {entry.file} into a folder and name that folder in {DIR_VARIABLE}"
    )


def _require_same(what: str, sha256: str, pinned: str, pin: str) -> None:
    if sha256 != pinned:
        raise InputError(
            f"{what} has sha256 {sha256}, but {pinned} is pinned by {pin}: find out who changed "
            "it; only if the new content is the right one, delete the pin"
        )


def _read_pin(file: Path) -> Pin | None:
    try:
        return Pin(**json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({error}); restore it or delete it") from error


def backbone(
    name: str,
    *,
    pretrained: bool = True,
    features_only: bool = True,
    out_indices: Sequence[int] | None = None,
    weights_dir: str | Path | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A distilled backbone, by default as a feature pyramid.

    Args:
        name: a name of the catalogue, `ssld zoo list`.
        features_only: return the maps `[b, c, h / stride, w / stride]` of `out_indices` instead of
            logits; `feature_info.channels()` and `.reduction()` of the model state c and stride.
        out_indices: which maps, by default all that timm has; from shallow to deep, as they come.
        weights_dir: folder with published files, instead of `SSLD_ZOO_DIR` or the network.
        kwargs: further arguments of `timm.create_model`.

    Raises:
        InputError: the catalogue does not have the name or the network not these maps, or the
            weights cannot be had.
    """
    entry = find(name)
    if out_indices is not None:
        if not features_only:
            raise InputError("out_indices chooses maps of a pyramid; leave it out for a classifier")
        _check_indices(name, out_indices, kwargs)
        kwargs["out_indices"] = tuple(out_indices)
    if pretrained:
        file = weights_file(entry, cache=kwargs.get("cache_dir"), folder=weights_dir)
        overlay = kwargs.get("pretrained_cfg_overlay", {})
        kwargs["pretrained_cfg_overlay"] = {**overlay, "file": str(file)}
    if features_only:
        kwargs["features_only"] = True
    return timm.create_model(name, pretrained=pretrained, **kwargs)


def _check_indices(name: str, indices: Sequence[int], kwargs: dict[str, Any]) -> None:
    """timm sorts them, and fails on those that there are not."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        pyramid: Any = timm.create_model(name, features_only=True, **kwargs)
    count = len(pyramid.feature_info.channels())
    given = list(indices) if isinstance(indices, Sequence) else []
    known = all(type(i) is int and 0 <= i < count for i in given)
    if not known or not given or given != sorted(set(given)):
        raise InputError(
            f"out_indices is {indices!r}, but {name} has the maps 0 to {count - 1}, that come from "
            f"shallow to deep, each once: give {tuple(range(1, count))}, for example"
        )
