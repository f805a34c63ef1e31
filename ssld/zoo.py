"""`ssld zoo ...`: look at, fetch, convert, publish and export distilled backbones.

The commands only; what they do is in the package `zoo`, and what a run says of itself in
`ssld/release.py`.
"""

from __future__ import annotations

import difflib
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssld import cli
from ssld.errors import InputError
from ssld.text_table import ABSENT, text_table
from ssld.zoo_config import (
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

if TYPE_CHECKING:
    from torch import nn

    from zoo.catalog import Entry


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


def convert(config: ConvertConfig) -> None:
    """Write Paddle's weights as a folder for timm."""
    from zoo.architectures import is_plain
    from zoo.catalog import find
    from zoo.converted import convert_file

    facts = convert_file(Path(config.file), config.paddle_class, Path(config.out))
    plain = is_plain(find(facts["registered"]))
    needs = "plain timm loads it" if plain else "`import zoo` first"
    print(f"{config.out}: {facts['architecture']}, every tensor used, every parameter filled")
    print(f'timm.create_model("local-dir:{config.out}", pretrained=True)  # {needs}')


def publish(config: PublishConfig) -> None:
    """Make a release of a run or a folder, and put it on a hub or into a local folder."""
    from ssld.release import assemble
    from zoo.hub import publish as upload
    from zoo.hub import split_repo
    from zoo.local import place

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


def pull(config: PullConfig) -> None:
    """Fetch a release, every sha256 verified."""
    from zoo.hub import pull as fetch

    fetch(config.repo, Path(config.out))


def verify(config: VerifyConfig) -> None:
    """Compare every file of a release with its sha256."""
    from zoo.release import verify as compare

    manifest = compare(Path(config.folder))
    print(f"{config.folder}: {len(manifest['files'])} files, every sha256 is right")


def bundle(config: BundleConfig) -> None:
    """Pack weights of the catalogue, or release folders, into one tar."""
    from ssld.replaceable import check_file
    from zoo.bundle import bundle as pack
    from zoo.converted import release_of

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


def unbundle(config: UnbundleConfig) -> None:
    """Extract a bundle, with every path and sha256 checked."""
    from zoo.bundle import unbundle as extract

    names = extract(Path(config.tar), Path(config.out))
    print(f"{config.out}: {', '.join(names) or 'nothing new'}; set SSLD_ZOO_DIR to it")


def export(config: ExportConfig) -> None:
    """Write a network in another format, compared with what it is now."""
    from ssld.replaceable import check_file
    from zoo.export import export as write

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
    from ssld.network import open_network
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


# command: settings, work, the setting that words before the first option are taken for
COMMANDS: dict[str, tuple[type, Callable[[Any], None], str | None]] = {
    "list": (ListConfig, list_, None),
    "show": (ShowConfig, show, "name"),
    "convert": (ConvertConfig, convert, "file"),
    "publish": (PublishConfig, publish, "source"),
    "pull": (PullConfig, pull, "repo"),
    "verify": (VerifyConfig, verify, "folder"),
    "bundle": (BundleConfig, bundle, "names"),
    "unbundle": (UnbundleConfig, unbundle, "tar"),
    "export": (ExportConfig, export, "source"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ssld zoo COMMAND ...`; returns the exit code."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: ssld zoo COMMAND [--help] ...\n\ncommands:")
        for command, (_, work, _) in COMMANDS.items():
            print(f"  {command:<12}{work.__doc__}")
        return 0
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(COMMANDS)}"
        print(f"error: unknown command 'zoo {name}'; {hint}", file=sys.stderr)
        return 2
    config_class, work, words = COMMANDS[name]
    return cli.command(f"ssld zoo {name}", config_class, _as_ours(work), _named(rest, words))


def _named(argv: list[str], setting: str | None) -> list[str]:
    """`NAME --out X` as `--name NAME --out X`, and `--class` by its longer name."""
    given = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    rest = [
        word.replace("--class", "--paddle_class", 1) if word.split("=")[0] == "--class" else word
        for word in argv[len(given) :]
    ]
    if not given or setting is None:
        return given + rest
    if setting == "names":
        return ["--names", json.dumps(given), *rest]
    return [f"--{setting}", *given, *rest]


def _as_ours(work: Callable[[Any], None]) -> Callable[[Any], None]:
    """The zoo cannot know this package: its errors become ours."""

    def working(config: Any) -> None:
        import zoo

        try:
            work(config)
        except zoo.InputError as error:
            raise InputError(str(error)) from error

    return working


if __name__ == "__main__":
    raise SystemExit(main())
