"""`ssld zoo list`, `show` and `verify`, which need no network and so no torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import zoo.release
from ssld.common.errors import InputError
from ssld.common.text_table import ABSENT, text_table
from ssld.zoo.config import ListConfig, ShowConfig, VerifyConfig
from zoo.catalog import Entry, catalog, find, select


def list_(config: ListConfig) -> None:
    """Print the catalogue, or what a filter leaves of it."""
    known = {x for e in catalog().values() for x in (e.license, e.teacher_license, e.terms) if x}
    if config.license and config.license.lower() not in known:
        raise InputError(f"license is {config.license!r}: give one of {', '.join(sorted(known))}")
    filters = asdict(config)
    as_json = filters.pop("json")
    entries = select(**filters)
    if as_json:
        print(json.dumps([_facts(entry) for entry in entries], indent=2))
        return
    head = ("name", "top-1 %", "without SSLD", "params M", "MACs M", "px", "terms", "loads into")
    rows = [
        (
            entry.name,
            _percent(entry.top1),
            _percent(entry.baseline_top1),
            f"{entry.parameters_m:g}",
            f"{entry.macs_m:,.0f}",
            str(entry.input_size),
            entry.terms,
            entry.architecture,
        )
        for entry in entries
    ]
    print(text_table(head, rows) if rows else "no entry passes these filters")
    print(
        f"\n{len(entries)} entries; accuracy on ImageNet-1k val as published, measured by nobody "
        "here; `ssld zoo show NAME` has sources and licences"
    )


def show(config: ShowConfig) -> None:
    """Print all that is known of one weight."""
    facts = _facts(find(config.name))
    if config.json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        several = isinstance(value, list | tuple)
        text = ABSENT if value is None else ", ".join(map(str, value)) if several else value
        print(f"{name:<16} {text}")
    print(f"\nimport timm, zoo\nmodel = timm.create_model({config.name!r}, pretrained=True)")


def verify(config: VerifyConfig) -> None:
    """Compare every file of a release with its sha256."""
    manifest = zoo.release.verify(Path(config.folder))
    print(f"{config.folder}: {len(manifest['files'])} files, every sha256 is right")


def _facts(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry), "terms": entry.terms}


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}"
