"""From a run, or an exported model, to a sealed release that `zoo.release` verifies.

What a release says about its making, it says from the run folder's own files. Nothing that only
describes the machine gets in: paths lose all but their end, URLs their secrets. The same source
and the same `About` give the same bytes, so that publishing again changes nothing.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from ssld.common.errors import InputError
from ssld.common.files import read_object, reading
from ssld.common.published import without_secrets
from ssld.common.recorded import check_recorded
from ssld.common.settings_file import read_settings
from ssld.engine.run_folder import read_lines
from ssld.models.opening import open_network
from ssld.report import plots
from ssld.zoo.config import About
from ssld.zoo.run_facts import RECIPE, run_facts
from zoo.licences import combine, known
from zoo.publish.card import CURVES, slug, write_card
from zoo.release import (
    MANIFEST,
    NOT_OURS,
    copy,
    new_release,
    read_manifest,
    seal,
    sha256_of,
    verify,
)

MODEL_FILES = ("config.json", "model.safetensors")


def assemble(
    source: Path, folder: Path, about: About | None = None, *, repo: str | None = None
) -> dict[str, Any]:
    """Make a sealed release at `folder`, all of it or nothing.

    Args:
        source: a run folder, an exported model folder, or a release, which is verified and kept.
        folder: new or empty.
        repo: `org/name` on the hub, for the card's usage.

    Returns:
        What its ssld.json says.

    Raises:
        InputError: no such source, a run without a student or with one that diverged, a damaged
            release, a folder that is in use or cannot be written.
    """
    source, folder, about = Path(source), Path(folder).resolve(), about or About()
    make = _copy_release if (source / MANIFEST).is_file() else _make_release
    # What is wrong with the copy is wrong with the source.
    with reading(source, "publish another run"), new_release(folder, str(source)) as part:
        make(source, part, about, repo)
    return read_manifest(folder)


def _copy_release(source: Path, folder: Path, about: About, repo: str | None) -> None:
    if about != About():
        raise InputError(
            f"{source} is a release already, and what it says is kept: leave name, licences and "
            "descriptions out, or publish the run that it was made from"
        )
    copy(source, folder)
    manifest = verify(folder)
    facts = {k: v for k, v in manifest.items() if k not in ("format", "files")}
    if repo and _has_own_card(folder, facts) or "README.md" not in manifest["files"]:
        write_card(folder, facts, repo)
        seal(folder, facts)


def _has_own_card(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether the card is the one that was written before there was a repository, and no more."""
    with tempfile.TemporaryDirectory() as temporary:
        again = Path(temporary) / "release"
        shutil.copytree(folder, again, ignore=shutil.ignore_patterns("*.safetensors"))
        write_card(again, facts)
        card = folder / "README.md"
        return card.is_file() and card.read_bytes() == (again / "README.md").read_bytes()


def _make_release(source: Path, folder: Path, about: About, repo: str | None) -> None:
    is_run = (source / "config.yaml").is_file()
    _refuse_heads(source, is_run)
    model = source / "student" if is_run else source
    for name in MODEL_FILES:
        if not (model / name).is_file():
            raise InputError(
                f"{source} has no student/{name} yet: the first evaluation on held-out images, or "
                "the end of the run, writes it"
                if is_run
                else f"{source} is no run, exported model or release (no {name}): give a folder "
                "that `ssld distill`, `ssld supervised`, `ssld zoo` or timm wrote"
            )
        shutil.copyfile(model / name, folder / name)
    check_recorded(model / "model.safetensors", digest=sha256_of(folder / "model.safetensors"))
    network = _network_facts(folder)
    named = source.resolve().parent if source.name == "student" else source.resolve()
    name = about.name or (repo.rpartition("/")[2] if repo else slug(named.name))
    facts: dict[str, Any] = {"name": name, "kind": "exported", **network}
    if about.description:
        facts["description"] = about.description
    if is_run:
        facts |= run_facts(source, network["step"], about, f"hf-hub:{repo}" if repo else ".")
    else:
        facts |= _exported_facts(folder, about)
    facts["data"] |= _about_data(about)
    _relicense(folder / "config.json", facts["license"]["license"], is_run)
    if is_run:
        (folder / RECIPE).write_text(yaml.safe_dump(facts["recipe"], sort_keys=False), "utf-8")
        draw_curves(folder / CURVES, read_lines(source / "metrics.jsonl"), facts["step"])
    write_card(folder, facts, repo)
    seal(folder, facts)


def _refuse_heads(source: Path, is_run: bool) -> None:
    """
    Raises:
        InputError: the source is a detector or a segmenter.
    """
    if is_run:
        content = read_settings(source / "config.yaml")
        which = [name for name in ("detector", "segmenter") if name in content]
    else:
        file = source / "config.json"
        content = read_object(file, "give another folder") if file.is_file() else {}
        which = [f"network of {content['task']}"] if "task" in content else []
    if which:
        raise InputError(
            f"{source} is a {which[0]}, and releases are of backbones and classifiers: "
            "`ssld export` makes ONNX of it, and a copy of its model folder is what `ssld predict` "
            "reads"
        )


def _network_facts(folder: Path) -> dict[str, Any]:
    """What the two model files say; building the network shows that it loads and is finite.
    Architectures that only zoo registers are known: importing any part of zoo does that."""
    network = open_network("model", arch=None, checkpoint=str(folder))
    with safe_open(folder / "model.safetensors", "pt") as file:
        step = (file.metadata() or {}).get("step", "")
    for name, tensor in network.model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"the model diverged, {name} is not finite: publish another run")
    parameters, macs = network.cost()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {
        "step": int(step) if step.isdigit() else None,
        "architecture": config["architecture"],
        "model_args": config.get("model_args", {}),
        "parameters_m": round(parameters, 3),
        "macs_m": round(macs, 2),
        "input_size": network.input_size,
    }


def _exported_facts(folder: Path, about: About) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = known(config.get("pretrained_cfg", {}).get("license"))
    inherited = [("the weights, as config.json has it", named)]
    if about.teacher_license:
        inherited.append(("the teacher", about.teacher_license))
    inherited.append(("the training data", about.data_license))
    return {"license": combine(about.license, inherited), "metrics": [], "data": {}}


def _about_data(about: About) -> dict[str, Any]:
    datasets: dict[str, Any] = {"datasets": about.datasets} if about.datasets else {}
    if not about.curation:
        return datasets
    if not about.curation.endswith(".json"):
        return {**datasets, "curation": about.curation}
    path = Path(about.curation)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8")).items()
        plain = {k: v for k, v in manifest if isinstance(v, str | int | float)}
        curation = {**without_secrets(plain), "manifest sha256": sha256_of(path)}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"curation {path} is no JSON manifest that can be read") from error
    return {**datasets, "curation": curation}


def _relicense(config: Path, license: str, is_run: bool) -> None:
    """timm's export names the licence of its own weights of the architecture."""
    content = json.loads(config.read_text(encoding="utf-8"))
    entries = content.setdefault("pretrained_cfg", {})
    for key in NOT_OURS if is_run else ():
        entries.pop(key, None)
    content["pretrained_cfg"] = {**without_secrets(entries), "license": license}
    config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


PLOTS = (
    ("loss, training batches", "train", {"loss": "loss"}, None),
    ("divergence, held-out images", "eval", {"divergence": "divergence"}, None),
    (
        "held-out images",
        "eval",
        {
            "agreement1": "the teacher's best",
            "feature_agreement": "the teacher's features",
            "top1": "top-1",
            "knn": "nearest neighbours",
        },
        1.02,
    ),
)
"""Title, kind of the lines, {key: label} and the upper end of each plot."""


def draw_curves(path: Path, lines: list[dict[str, Any]], step: int | None) -> None:
    """Training loss, and what evaluations on held-out images found, over steps."""
    shown = [p for p in PLOTS if any(x["kind"] == p[1] and x.keys() & p[2].keys() for x in lines)]
    if not shown:
        return
    figure = plots.new_figure()
    figure.set_size_inches(4.4 * len(shown), 2.8)
    parts = figure.subfigures(1, len(shown), squeeze=False)[0]
    for part, (title, kind, names, high) in zip(parts, shown, strict=True):
        plot = plots.axes(part, "step")
        plot.set_title(title, fontsize=10)
        for (key, label), colour in zip(names.items(), plots.COLOURS, strict=False):
            points = [(x["step"], x[key]) for x in lines if x["kind"] == kind and key in x]
            if points:
                plots.line(plot, points, colour, label=label)
        plot.axvline(step or 0, color=plots.GREY, lw=1, ls=":")
        plot.set_xlim(left=0)
        plot.set_ylim(0, high)
        if len(names) > 1:
            plot.legend(frameon=False, fontsize=8)
    path.write_bytes(plots.png(figure, metadata={"Software": None}))
