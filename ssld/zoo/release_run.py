"""From a run, or an exported model, to a sealed release that `zoo.release` verifies.

What a release says about its making, it says from the run folder's own files. Nothing that only
describes the machine gets in: paths lose all but their end, URLs their secrets. The same source
and the same `About` give the same bytes, so that publishing again changes nothing.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ssld.common.errors import InputError, one_line
from ssld.common.metrics import CHANCE
from ssld.common.recorded import check_recorded
from ssld.common.written_files import WRONG, read_object
from ssld.engine.run_folder import read_lines
from ssld.health.intervals import wilson
from ssld.health.resolution import said_of
from ssld.health.verdict_text import signs_of
from ssld.zoo.config import About
from zoo.errors import InputError as ZooError
from zoo.licences import combine, known, normalised, weights
from zoo.publish.card import CURVES, METRICS, slug, write_card
from zoo.release import MANIFEST, NOT_OURS, copy, seal, sha256_of, verify

RECIPE = "config.yaml"
MODEL_FILES = ("config.json", "model.safetensors")
VERIFIED = 1000
"""Labeled images at most on which a run checks its teacher (VERIFY_IMAGES in ssld/distill/verify_teacher.py,
which imports torch)."""


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
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} is not empty: give a new folder for the release")
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        if (source / MANIFEST).is_file():
            _copy_release(source, temporary, about, repo)
        else:
            _make_release(source, temporary, about, repo)
        manifest = verify(temporary)
        temporary.replace(folder)  # onto an empty folder too
    except (InputError, ZooError) as error:  # what is wrong with the copy is wrong with the source
        raise InputError(str(error).replace(str(temporary), str(source))) from error
    except WRONG as error:
        raise InputError(f"{source}: one of its files is damaged ({error!r})") from error
    except OSError as error:
        said = one_line(error)
        raise InputError(f"{folder}: the release cannot be written ({said})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


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
    model = source / "student" if is_run else source
    for name in MODEL_FILES:
        if not (model / name).is_file():
            raise InputError(
                f"{source} has no student/{name} yet: the first evaluation on held-out images, or "
                "the end of the run, writes it; go on with --resume"
                if is_run
                else f"{source} is no run, exported model or release (no {name}): give a folder "
                "that `ssld distill`, `ssld supervised`, `ssld zoo` or timm wrote"
            )
        shutil.copyfile(model / name, folder / name)
    check_recorded(model / "model.safetensors", found=sha256_of(folder / "model.safetensors"))
    network = _network_facts(folder)
    named = source.resolve().parent if source.name == "student" else source.resolve()
    name = about.name or (repo.rpartition("/")[2] if repo else slug(named.name))
    facts: dict[str, Any] = {"name": name, "kind": "exported", **network}
    if about.description:
        facts["description"] = about.description
    if is_run:
        facts |= _run_facts(source, network["step"], about, f"hf-hub:{repo}" if repo else ".")
    else:
        facts |= _exported_facts(folder, about)
    facts["data"] |= _about_data(about)
    _relicense(folder / "config.json", facts["license"]["license"], is_run)
    if is_run:
        from ssld.zoo.curves import draw_curves

        (folder / RECIPE).write_text(yaml.safe_dump(facts["recipe"], sort_keys=False), "utf-8")
        draw_curves(folder / CURVES, read_lines(source / "metrics.jsonl"), facts["step"])
    write_card(folder, facts, repo)
    seal(folder, facts)


def _network_facts(folder: Path) -> dict[str, Any]:
    """What the two model files say; building the network shows that it loads and is finite.
    Architectures that only zoo registers are known: importing any part of zoo does that."""
    from safetensors import safe_open

    from ssld.models.classifier import open_network

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


def _run_facts(run: Path, step: int | None, about: About, model: str) -> dict[str, Any]:
    recipe, facts = (read_object(run / x, "publish another run") for x in (RECIPE, "run.json"))
    lines = read_lines(run / "metrics.jsonl")
    evaluations = [x for x in lines if x["kind"] == "eval"]
    last = evaluations[-1] if evaluations else {}
    evaluation = next((x for x in evaluations if x["step"] == step), {})
    if facts.get("resolution"):  # another size than the one that was evaluated in training
        evaluation = facts["resolution"]["metrics"]
    if any(isinstance(x, float) and not math.isfinite(x) for x in evaluation.values()):
        raise InputError(f"{run}: the student of step {step} diverged; publish another run")
    stages = list(_stages(recipe, facts))
    taught = [stage for stage in stages if _is_taught(stage[1])]
    found: dict[str, Any] = {
        "kind": "distilled" if taught else "supervised",
        "stages": [_command(settings) for settings, _ in reversed(stages)],
        "earlier_recipes": [without_secrets(settings) for settings, _ in reversed(stages[1:])],
        "labels_read": len(taught) < len(stages),
        "steps": facts["steps"],
        "reached": max((x["step"] for x in lines), default=step),
        "finished": facts.get("exported") is not None,
        "verdict": last.get("verdict"),
        "verdict_step": last.get("step"),
        "symptoms": _symptoms(recipe, evaluation),
        **({"chosen": said_of(facts["resolution"])} if facts.get("resolution") else {}),
        "recipe": without_secrets(recipe),
    }
    inherited = []
    for settings, of_stage in reversed(taught):
        found["teacher"] = teacher = _teacher(settings, of_stage, about)
        inherited += [(f"the teacher {x['name']}", x["license"]) for x in teacher["networks"]]
    student = stages[-1][0]["student"]
    if student.get("pretrained") or student.get("checkpoint"):
        start = weights(student.get("arch"), student.get("checkpoint"), "from a local file")
        inherited.append((f"the initial weights {start['name']}", start["license"]))
    inherited.append(("the training data", about.data_license))
    return {
        **found,
        "license": combine(about.license, list(dict.fromkeys(inherited))),
        "data": {
            "sha256": facts["data_sha256"],
            "val_sha256": facts["val_sha256"],
            "sources": _sources({k: v for _, x in stages for k, v in x.get("images", {}).items()}),
            "held_out": _sources(facts.get("held_out") or {}),
        },
        "versions": facts["versions"],
        "metrics": list(_metrics(recipe, facts, evaluation, about, model)),
    }


def _symptoms(recipe: dict[str, Any], evaluation: dict[str, Any]) -> list[str]:
    """What shows that the exported weights have not learned."""
    classes = recipe["student"].get("num_classes") if "student" in recipe else None
    return signs_of(evaluation, classes) if classes else []


def _stages(
    recipe: dict[str, Any], facts: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Settings and facts of a run, of the one that it went on from, and so on."""
    yield recipe, facts
    start = facts.get("started_from")
    if start:
        yield from _stages(start["settings"], {**start["facts"], **start})


def _is_taught(facts: dict[str, Any]) -> bool:
    return "teacher" in facts or "teacher 0" in facts


def _command(recipe: dict[str, Any]) -> str:
    """The command that a run's settings are those of."""
    if "resolutions" in recipe:
        return "fix"
    return "finetune" if "run" in recipe else "distill" if "teacher" in recipe else "supervised"


def _metrics(
    recipe: dict[str, Any], facts: dict[str, Any], line: dict[str, Any], about: About, model: str
) -> Iterator[dict[str, Any]]:
    """The evaluation of the exported weights, of their average where the run kept one."""
    val = without_secrets(recipe["data"]["val"])
    again = f"ssld {_command(recipe)} --config {RECIPE}"
    where = shlex.quote(val[0] if len(val) == 1 else json.dumps(val))
    evaluate = f"ssld evaluate --model {model} --data {where}"
    if (facts.get("resolution") or {}).get("images"):  # measured on a half of them
        evaluate = again
    for name in METRICS:
        if name not in line:
            continue
        images = round(line["images"]) if name.startswith("agreement") else None
        if name in ("top1", "top5"):
            images = _labeled(facts, line, line[name])
        low, high = wilson(line[name] * images, images) if images else (None, None)
        yield {
            "name": name,
            "value": line[name],
            "chance": line.get(CHANCE.get(name, "")),
            "low": low,
            "high": high,
            "images": images,
            "dataset": about.evaluated_on or ", ".join(val) or "held-out training images",
            "dataset_id": about.evaluated_on,
            "command": evaluate if name in ("top1", "top5") and val else again,
        }


def _labeled(facts: dict[str, Any], line: dict[str, Any], share: float) -> int | None:
    """How many of the held-out images count for accuracy.

    Older lines of metrics.jsonl count labeled and other images together; a distillation has counted
    the labeled ones when it checked its teacher, supervised training knows no others."""
    images = round(line["images"])
    if "labeled" in line:
        return round(line["labeled"])
    if abs(share * images - round(share * images)) > 1e-6:
        return None  # it is a share of fewer
    verified = (facts.get("teacher_top1") or {}).get("images")
    supervised = facts["teacher_sha256"] is None
    return images if supervised or verified == min(images, VERIFIED) else None


def _teacher(recipe: dict[str, Any], facts: dict[str, Any], about: About) -> dict[str, Any]:
    configs = recipe.get("teachers") or [recipe["teacher"]]
    networks = []
    for i, config in enumerate(configs):
        fact = facts["teacher" if len(configs) == 1 else f"teacher {i}"]
        place = weights(config.get("arch"), config.get("checkpoint"), str(fact["architecture"]))
        network = {**fact, **without_secrets(place)}
        if about.teacher_license and network["license"] is None:
            network["license"] = normalised(about.teacher_license)
        elif about.teacher_license and network["license"] != normalised(about.teacher_license):
            said = f"{network['name']} is published under {network['license']}"
            raise InputError(f"{said}, not {about.teacher_license}: leave teacher_license out")
        networks.append({**network, "license": network["license"] or "unknown"})
    names, licenses = ([network[key] for network in networks] for key in ("name", "license"))
    top1 = facts.get("teacher_top1")
    return {
        "name": " + ".join(names),
        "license": licenses[0] if len(set(licenses)) == 1 else "several",
        "sha256": facts["teacher_sha256"],
        "top1": {"value": top1["hits"] / top1["images"], **top1} if top1 else None,
        "networks": networks,
    }


def _about_data(about: About) -> dict[str, Any]:
    found: dict[str, Any] = {"datasets": about.datasets} if about.datasets else {}
    if not about.curation:
        return found
    if not about.curation.endswith(".json"):
        return {**found, "curation": about.curation}
    path = Path(about.curation)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8")).items()
        plain = {k: v for k, v in manifest if isinstance(v, str | int | float)}
        curation = {**without_secrets(plain), "manifest sha256": sha256_of(path)}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"curation {path} is no JSON manifest that can be read") from error
    return {**found, "curation": curation}


def _sources(images: Mapping[str, int]) -> list[dict[str, Any]]:
    return [{"source": without_secrets(path), "images": n} for path, n in images.items()]


def without_secrets(value: Any) -> Any:
    """Settings without what only describes a machine or opens a door: local paths that are
    absolute or lead out of the working folder keep their last two components, and none of a home
    folder's own; URLs lose user, password, query and fragment."""
    if isinstance(value, Mapping):
        return {k: without_secrets(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(x) for x in value]
    if not isinstance(value, str):
        return value
    return "::".join(_shortened(part) for part in value.split("::"))  # fsspec chains URLs so


def _shortened(text: str) -> str:
    if text.startswith("local-dir:"):
        return "local-dir:" + _shortened(text.removeprefix("local-dir:"))
    url = re.match(r"([A-Za-z][\w+.-]*)://(.*)", text, re.DOTALL)
    if url and url[1].lower() in ("file", "local"):
        return _shortened(url[2])
    if url:
        host, slash, path = re.split(r"[?#]", url[2], maxsplit=1)[0].partition("/")
        if re.search(r":(?!\d+$)", host.rpartition("@")[2]):  # a password with a slash in it
            host, slash, path = path.rpartition("@")[2].partition("/")
        return f"{url[1]}://{host.rpartition('@')[2]}{slash}{path}"
    plain = text.replace("\\", "/")
    if not re.match(r"/|~|[A-Za-z]:/|(\./)*\.\./", plain):
        return text
    parts = plain.removeprefix(f"{Path.home()}/").split("/")
    parts = [part for part in parts if part not in ("", ".", "..")]
    homes = [i + 2 for i, part in enumerate(parts) if part.lower() in ("home", "homes", "users")]
    rest = parts[homes[-1] :] if homes else parts
    return "/".join([x for x in rest if not x.startswith("~") and x != "root"][-2:]) or "~"


def _relicense(config: Path, license: str, is_run: bool) -> None:
    """timm's export names the licence of its own weights of the architecture."""
    content = json.loads(config.read_text(encoding="utf-8"))
    entries = content.setdefault("pretrained_cfg", {})
    for key in NOT_OURS if is_run else ():
        entries.pop(key, None)
    content["pretrained_cfg"] = {**without_secrets(entries), "license": license}
    config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
