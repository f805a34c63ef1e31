"""`ssld zoo ...`: fetch, convert, publish and export distilled backbones.

The commands only; what they do is in the package `zoo`, and what a run says of itself in
`ssld/zoo/run_facts.py`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from torch import nn

import zoo
from ssld.common.errors import InputError
from ssld.common.paths import check_file
from ssld.models.opening import open_network
from ssld.zoo.config import (
    BundleConfig,
    ConvertConfig,
    ExportConfig,
    PublishConfig,
    PullConfig,
    UnbundleConfig,
)
from ssld.zoo.release_run import assemble
from zoo.architectures import is_plain
from zoo.export import classifier
from zoo.publish import bundle as tar
from zoo.publish import hub
from zoo.publish.converted import convert_file, release_of
from zoo.publish.local import place


def convert(config: ConvertConfig) -> None:
    """Write Paddle's weights as a folder for timm."""
    facts = convert_file(Path(config.file), config.paddle_class, Path(config.out))
    plain = is_plain(zoo.find(facts["registered"]))
    needs = "plain timm loads it" if plain else "`import zoo` first"
    print(f"{config.out}: {facts['architecture']}, every tensor used, every parameter filled")
    print(f'timm.create_model("local-dir:{config.out}", pretrained=True)  # {needs}')


def publish(config: PublishConfig) -> None:
    """Make a release of a run or a folder, and put it on a hub or into a local folder."""
    if config.repo:
        hub.split_repo(config.repo)
    with tempfile.TemporaryDirectory(prefix="ssld-release-") as temporary:
        folder = Path(temporary) / "release"
        manifest = assemble(Path(config.source), folder, config.about, repo=config.repo)
        if config.repo:
            done = hub.publish(folder, config.repo, dry_run=config.dry_run, private=config.private)
            if done.revision and not config.dry_run:
                name = f"hf-hub:{config.repo}@{done.revision}"
                print(f"timm.create_model({name!r}, pretrained=True)")
        else:
            place(folder, Path(str(config.to)), dry_run=config.dry_run)
    note = manifest.get("license", {}).get("note")
    if note:
        print(f"note: {note}", file=sys.stderr)


def pull(config: PullConfig) -> None:
    """Fetch a release, every sha256 verified."""
    hub.pull(config.repo, Path(config.out))


def bundle(config: BundleConfig) -> None:
    """Pack weights of the catalogue, or release folders, into one tar."""
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
        tar.bundle(folders, Path(config.out))
    print(f"{config.out}: {', '.join(folders)}")


def unbundle(config: UnbundleConfig) -> None:
    """Extract a bundle, with every path and sha256 checked."""
    names = tar.unbundle(Path(config.tar), Path(config.out))
    print(f"{config.out}: {', '.join(names) or 'nothing new'}; set SSLD_ZOO_DIR to it")


def export(config: ExportConfig) -> None:
    """Write a network in another format, compared with what it is now."""
    if config.format != "torchvision":
        check_file("out", config.out, config.format)
    written = classifier.export(_model(config), config.format, Path(config.out))
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
    if Path(config.source).exists() or "/" in config.source:
        return open_network("model", arch=None, checkpoint=config.source).model
    return zoo.backbone(config.source, features_only=False, weights_dir=config.weights_dir)
