"""The catalogue of the published `_ssld` weights: `catalog.yaml`, checked and searchable.

Data and lookup only: neither torch nor timm is imported, nothing is fetched. What each field means
in detail, and where the numbers come from, stands at the top of `catalog.yaml`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from zoo.errors import InputError, did_you_mean
from zoo.licences import Terms, normalised, terms

NAME = re.compile(r"[a-z0-9_]+_ssld(\.[a-z0-9_]+)?")
NUMBER = (int, float)
BLOCKS = {"host": str, "sources": dict, "defaults": dict, "entries": dict}
KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "float": NUMBER,
    "int": (int,),
    "bool": (bool,),
    "dict[str, Any]": (dict,),
    "tuple[float, ...]": (list,),
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One published weight file, and what is known of it."""

    name: str
    """Its name here: architecture and `_ssld`, then a tag after a dot for a further file."""
    architecture: str
    """What the weights load into: a name of timm, or one that `import zoo` registers."""
    args: dict[str, Any]
    """Options of `timm.create_model`."""
    paddle_class: str
    """Class in PaddleClas, without `_ssld`."""
    file: str | None
    """Name of the published file; None: never published, architecture only."""
    url: str | None
    """Its address."""
    timm_weights: str | None
    """timm's own name of the same weights, where timm ships them."""
    baseline_top1: float | None
    """% on ImageNet-1k val of the same network trained with labels; None: not published."""
    baseline_top5: float | None
    """Top-5 % of that network."""
    top1: float | None
    """% on ImageNet-1k val as published; None: not published."""
    top5: float | None
    """Top-5 % as published."""
    source: str
    """Which documents the numbers stand in, with their commits."""
    parameters_m: float
    """Millions of parameters, without the running statistics of batch norm."""
    macs_m: float
    """Millions of multiply-adds for one image of `input_size`."""
    input_size: int
    """Side of the image in px, in the publisher's test."""
    crop_pct: float
    """The shorter side is resized to `input_size / crop_pct` px, then the centre is cut out."""
    interpolation: str
    """How the publisher's test resizes: bilinear or bicubic."""
    mean: tuple[float, ...]
    """Mean of the red, green and blue values in 0..1 that is taken off."""
    std: tuple[float, ...]
    """What they are divided by."""
    license: str
    """Licence of the code that came with the weights, which carry none of their own."""
    provenance: str
    """Who made the weights, from what."""
    teacher: str | None
    """Whose outputs the weights were trained on; None: not published."""
    teacher_license: str | None
    """Licence of the teacher, or of the teacher's teacher; None: not known."""
    sha256: str | None
    """Of the file; None: never measured, so the first file fetched is trusted."""
    revision: str | None
    """Version of the file at its publisher; None: it has none."""
    stage: int | None
    """1: distilled; 2: then on ImageNet-1k alone; 3: then the classifier at a higher resolution."""
    paper_student: bool
    """One of the nine students in the paper's table 2."""
    notes: str
    """Where documents disagree, and what else is uncertain."""

    @property
    def arch_name(self) -> str:
        """The name without its tag: `resnet50d_ssld` of `resnet50d_ssld.fix`."""
        return self.name.partition(".")[0]

    @property
    def tag(self) -> str:
        """What stands after the dot: `fix` of `resnet50d_ssld.fix`; empty for the default file."""
        return self.name.partition(".")[2]

    @property
    def terms(self) -> Terms:
        """What the weights may be used for, by the licences of their code and their teacher."""
        order: list[Terms] = ["noncommercial", "unknown", "conditions", "permissive"]
        licences = (self.license, self.teacher_license)
        return min((terms(normalised(x)) for x in licences), key=order.index)


@cache
def catalog() -> Mapping[str, Entry]:
    """Every entry by name, in the order of the file."""
    return read(Path(str(files("zoo") / "catalog.yaml")))


def find(name: str) -> Entry:
    """The entry called `name`.

    Raises:
        InputError: there is none; it offers the nearest names.
    """
    entries = catalog()
    if name in entries:
        return entries[name]
    wanted = name.lower().removesuffix("_pretrained").removesuffix("_ssld")  # Paddle's, perhaps
    near = [e.name for e in entries.values() if e.paddle_class.lower() == wanted]
    near += difflib.get_close_matches(name.lower().replace("-", "_"), entries, n=3, cutoff=0.6)
    offer = f": did you mean {' or '.join(dict.fromkeys(near[:4]))}?" if near else ";"
    raise InputError(
        f"the catalogue has no weights {name!r}{offer} `ssld zoo list` shows all {len(entries)}"
    )


def paddle_classes() -> dict[str, list[Entry]]:
    """Entries by class of PaddleClas, as several files may load into one."""
    entries: dict[str, list[Entry]] = {}
    for entry in catalog().values():
        entries.setdefault(entry.paddle_class, []).append(entry)
    return entries


def select(
    *,
    max_macs_m: float | None = None,
    max_parameters_m: float | None = None,
    min_top1: float | None = None,
    license: str | None = None,
) -> list[Entry]:
    """Entries that pass every filter given, the most accurate first, unknown accuracy last.

    Args:
        max_macs_m: millions of multiply-adds at most.
        max_parameters_m: millions of parameters at most.
        min_top1: published accuracy in % at least; without one an entry does not pass.
        license: a licence that the entry or its teacher has, such as `cc-by-nc-4.0`, or the terms
            that follow: `permissive`, `conditions`, `noncommercial` or `unknown`.
    """
    wanted = license.strip().lower() if license else None
    entries = [
        e
        for e in catalog().values()
        if (max_macs_m is None or e.macs_m <= max_macs_m)
        and (max_parameters_m is None or e.parameters_m <= max_parameters_m)
        and (min_top1 is None or (e.top1 is not None and e.top1 >= min_top1))
        and (wanted is None or wanted in (e.license, e.teacher_license, e.terms))
    ]
    return sorted(entries, key=lambda e: (e.top1 is None, -(e.top1 or 0.0), e.name))


def read(path: Path) -> Mapping[str, Entry]:
    """The entries of a catalogue file.

    Raises:
        InputError: it is no such file, or an entry lacks a key, has one too many or a wrong value.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict) or {k: type(v) for k, v in content.items()} != BLOCKS:
        raise InputError(
            f"{path} must have exactly the text `host` and the blocks sources, defaults and entries"
        )
    entries = {}
    for name, given in content["entries"].items():
        try:
            entries[name] = _entry(name, given, content)
        except ValueError as error:
            raise InputError(f"{path}, entry {name}: {error}") from error
    return MappingProxyType(entries)


def _entry(name: str, given: dict[str, Any], content: dict[str, Any]) -> Entry:
    if not isinstance(given, dict):
        raise ValueError("it has no keys")
    if not NAME.fullmatch(name):
        raise ValueError("the name must be like resnet50d_ssld or resnet50d_ssld.fix")
    values = {**content["defaults"], **given}
    known = {f.name: str(f.type) for f in fields(Entry) if f.name not in ("name", "url")}
    for key in values:
        if key not in known:
            raise ValueError(f"unknown key {key!r}{did_you_mean(str(key), known)}")
    for key, kind in known.items():
        if key not in values:
            raise ValueError(f"the key {key!r} is missing")
        _check(key, values[key], kind)
    path = values["file"]
    values["url"] = f"{content['host']}/{path}" if path else None
    values["file"] = path.rpartition("/")[2] if path else None
    values["source"] = _sources(values["source"], content["sources"])
    values |= {key: tuple(values[key]) for key in ("mean", "std")}
    return Entry(name=name, **values)


def _check(key: str, value: object, kind: str) -> None:
    allowed = KINDS[kind.removesuffix(" | None")]
    if value is None and kind.endswith("| None"):
        return
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise ValueError(f"{key} is {value!r}, it must be {kind}")
    if key.endswith(("top1", "top5")) and not 0 < float(str(value)) < 100:
        raise ValueError(f"{key} is {value!r}, it must be a percentage")
    if allowed is NUMBER and float(str(value)) <= 0:
        raise ValueError(f"{key} is {value!r}, it must be above 0")


def _sources(given: str, known: dict[str, str]) -> str:
    names = given.split(", ")
    for name in names:
        if name not in known:
            raise ValueError(f"source {name!r} is not in the block `sources`")
    return "; ".join(known[name] for name in names)
