"""`ssld zoo ...`: look at, fetch, convert, publish and export distilled backbones.

The commands only; what they do is in the package `zoo`, and what a run says of itself in
`ssld/zoo/release_run.py`.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ssld.common.errors import InputError
from ssld.common.text_table import ABSENT, text_table
from ssld.zoo.config import (
    BundleConfig,
    ConvertConfig,
    ExportConfig,
    ListConfig,
    PublishConfig,
    PullConfig,
    ShowConfig,
    UnbundleConfig,
    VerifyConfig,
)

Config = TypeVar("Config")

if TYPE_CHECKING:
    from torch import nn

    from zoo.catalog import Entry


def _as_ours(work: Callable[[Config], None]) -> Callable[[Config], None]:
    """The zoo cannot know this package: its errors become ours."""

    @functools.wraps(work)
    def working(config: Config) -> None:
        import zoo

        try:
            work(config)
        except zoo.InputError as error:
            raise InputError(str(error)) from error

    return working


@_as_ours
def list_(config: ListConfig) -> None:
    """Print the catalogue, or what a filter leaves of it."""
    from zoo.catalog import catalog, select

    known = {x for e in catalog().values() for x in (e.license, e.teacher_license, e.terms) if x}
    if config.license and config.license.lower() not in known:
        raise InputError(f"license is {config.license!r}: give one of {', '.join(sorted(known))}")
    settings = asdict(config)
    as_json = settings.pop("json")
    entries = select(**settings)
    if as_json:
        print(json.dumps([_facts(entry) for entry in entries], indent=2))
        return
    head = ("name", "top-1 %", "without SSLD", "params M", "MACs M", "px", "terms", "loads into")
    rows = [
        (
            entry.name,
            _number(entry.top1),
            _number(entry.baseline_top1),
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


@_as_ours
def show(config: ShowConfig) -> None:
    """Print all that is known of one weight."""
    from zoo.catalog import find

    entry = find(config.name)
    if config.json:
        print(json.dumps(_facts(entry), indent=2))
        return
    for name, value in _facts(entry).items():
        print(f"{name:<16} {_plain(value)}")
    print(f"\nimport timm, zoo\nmodel = timm.create_model({entry.name!r}, pretrained=True)")


def _facts(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry), "terms": entry.terms}


@_as_ours
def convert(config: ConvertConfig) -> None:
    """Write Paddle's weights as a folder for timm."""
    from zoo.architectures import is_plain
    from zoo.catalog import find
    from zoo.publish.converted import convert_file

    facts = convert_file(Path(config.file), config.paddle_class, Path(config.out))
    plain = is_plain(find(facts["registered"]))
    needs = "plain timm loads it" if plain else "`import zoo` first"
    print(f"{config.out}: {facts['architecture']}, every tensor used, every parameter filled")
    print(f'timm.create_model("local-dir:{config.out}", pretrained=True)  # {needs}')


@_as_ours
def publish(config: PublishConfig) -> None:
    """Make a release of a run or a folder, and put it on a hub or into a local folder."""
    from ssld.zoo.release_run import assemble
    from zoo.publish.hub import publish as upload
    from zoo.publish.hub import split_repo
    from zoo.publish.local import place

    if config.repo:
        split_repo(config.repo)
    with tempfile.TemporaryDirectory(prefix="ssld-release-") as temporary:
        folder = Path(temporary) / "release"
        manifest = assemble(Path(config.source), folder, config.about, repo=config.repo)
        if config.repo:
            done = upload(folder, config.repo, dry_run=config.dry_run, private=config.private)
            if done.revision and not config.dry_run:
                name = f"hf-hub:{config.repo}@{done.revision}"
                print(f"timm.create_model({name!r}, pretrained=True)")
        else:
            place(folder, Path(str(config.to)), dry_run=config.dry_run)
    note = manifest.get("license", {}).get("note")
    if note:
        print(f"note: {note}", file=sys.stderr)


@_as_ours
def pull(config: PullConfig) -> None:
    """Fetch a release, every sha256 verified."""
    from zoo.publish.hub import pull as fetch

    fetch(config.repo, Path(config.out))


@_as_ours
def verify(config: VerifyConfig) -> None:
    """Compare every file of a release with its sha256."""
    from zoo.release import verify as compare

    manifest = compare(Path(config.folder))
    print(f"{config.folder}: {len(manifest['files'])} files, every sha256 is right")


@_as_ours
def bundle(config: BundleConfig) -> None:
    """Pack weights of the catalogue, or release folders, into one tar."""
    from ssld.common.replaceable import check_file
    from zoo.publish.bundle import bundle as pack
    from zoo.publish.converted import release_of

    check_file("out", config.out, "bundle")
    with tempfile.TemporaryDirectory(prefix="ssld-bundle-") as temporary:
        folders: dict[str, Path] = {}
        for name in config.names:
            given = Path(name).resolve()
            folder = given if given.is_dir() else Path(temporary) / name
            if folder.name in folders:
                raise InputError(f"{folder.name} is given twice; give each name once")
            folders[folder.name] = folder
        for name, folder in folders.items():
            if folder.parent == Path(temporary):
                release_of(name, folder, weights_dir=config.weights_dir)
        pack(folders, Path(config.out))
    print(f"{config.out}: {', '.join(folders)}")


@_as_ours
def unbundle(config: UnbundleConfig) -> None:
    """Extract a bundle, with every path and sha256 checked."""
    from zoo.publish.bundle import unbundle as extract

    names = extract(Path(config.tar), Path(config.out))
    print(f"{config.out}: {', '.join(names) or 'nothing new'}; set SSLD_ZOO_DIR to it")


@_as_ours
def export(config: ExportConfig) -> None:
    """Write a network in another format, compared with what it is now."""
    from ssld.common.replaceable import check_file
    from zoo.export.onnx_classifier import export as write

    if config.format != "torchvision":
        check_file("out", config.out, config.format)
    written = write(_model(config), config.format, Path(config.out))
    sizes = ", ".join(f"{h}x{w}" for h, w in written.sizes)
    batches = ", ".join(map(str, written.batch_sizes))
    other = "any size" if written.any_size else "this size only"
    print(f"{config.out}: {written.format} ({written.method}), {other}")
    print(
        f"logits of {written.inputs} images in batches of {batches} at {sizes} px: off by at most "
        f"{written.max_abs:.2g}, which is {written.relative:.2g} of the logits' deviation"
    )


def _model(config: ExportConfig) -> nn.Module:
    """A folder's network, or that of a name of the catalogue."""
    from ssld.models.classifier import open_network
    from zoo import backbone

    if Path(config.source).exists() or "/" in config.source:
        return open_network("model", arch=None, checkpoint=config.source).model
    return backbone(config.source, features_only=False, weights_dir=config.weights_dir)


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}"


def _plain(value: Any) -> str:
    if value is None:
        return ABSENT
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
