"""The model card of a release, from the facts of its `ssld.json`: front matter that the hub's own
classes and YAML write, a body that people read, and `.eval_results/` for leaderboards.

Whatever a fact says is a stranger's text; it gets onto the card by `zoo/publish/card_text.py` only.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import InputError
from zoo.licences import TERMS_FILE, front_matter, is_loud, known, of_release, timm_weights
from zoo.publish.card_text import block, clean, code, prose, slug

CURVES = "curves.png"
EVAL_RESULTS = ".eval_results"
METRICS = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "agreement1": "agreement@1 with the teacher",
    "agreement5": "agreement@5 with the teacher",
    "knn": "nearest neighbours on frozen features",
    "linear": "linear classifier on frozen features",
    "divergence": "divergence from the teacher",
    "ece": "expected calibration error",
}
SHARES = tuple(METRICS)[:6]
"""Metrics that are shares of images, shown in percent."""
REPORTED = {"top1": "accuracy", "top5": "accuracy", "agreement1": "agreement"}
"""What goes into the front matter and to leaderboards: our name -> the hub's metric type."""
HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
RECIPE_LIMIT = 20_000
"""Characters of the recipe on a card; all of it is in ssld.json."""
Facts = Mapping[str, Any]


def write_card(folder: Path, facts: Facts, repo: str | None = None) -> None:
    """Write README.md, `.eval_results/*.yaml` and, where the hub has no id for the licence,
    LICENSE.md into a release that is not sealed yet.

    Args:
        facts: what ssld.json says or will say.
        repo: `org/name` on the hub; by default the usage says `local-dir:`.

    Raises:
        InputError: `repo` is no repository's name, or the facts are not what ssld.json holds.
    """
    if repo is not None and not (HUB_ID.fullmatch(repo) and "/" in repo):
        raise InputError(f"{repo[:96]!r} is not a repository: give org/name")
    try:
        facts = {**facts, "license": of_release(facts)}
        data = _front_matter(facts)
        body = "\n\n".join(part for part in _body(folder, facts, repo) if part)
        results = _leaderboards(facts)
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{folder}: the facts for the card are damaged ({error!r})") from error
    _write(folder / "README.md", f"---\n{_yaml(data)}---\n\n{body}\n")
    shutil.rmtree(folder / EVAL_RESULTS, ignore_errors=True)
    for name, entries in results.items():
        _write(folder / EVAL_RESULTS / f"{name}.yaml", _yaml(entries))
    if "license_link" in data:
        _write(folder / TERMS_FILE, "\n\n".join(_license_section(facts)) + "\n")


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def _front_matter(facts: Facts) -> dict[str, Any]:
    from huggingface_hub import EvalResult, ModelCardData

    teacher = facts.get("teacher")
    found = [m for m in facts.get("metrics") or () if m["name"] in REPORTED]
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=_dataset_id(metric, facts),
            dataset_name=clean(metric.get("dataset") or "held-out images", 96),
            metric_type=REPORTED[metric["name"]],
            metric_name=METRICS[metric["name"]],
            metric_value=round(float(metric["value"]), 6),
        )
        for metric in found
    ]
    datasets = [x for x in (facts.get("data") or {}).get("datasets") or () if _is_hub_id(x)]
    terms = front_matter(known(facts["license"]["license"]) or "unknown")
    card = ModelCardData(
        license=terms["license"],
        license_name=terms.get("license_name"),
        license_link=terms.get("license_link"),
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "ssld", *(["distillation"] if teacher else [])],
        datasets=datasets or None,
        metrics=["accuracy"] if any(r.metric_type == "accuracy" for r in results) else None,
        base_model=_base_models(facts) or None,
        model_name=slug(facts["name"]) if results else None,
        eval_results=results or None,
    )
    return card.to_dict()


def _is_hub_id(text: object) -> bool:
    return isinstance(text, str) and HUB_ID.fullmatch(text) is not None and ".." not in text


def _base_models(facts: Facts) -> list[str]:
    """Hub ids of the teachers. There is no `base_model_relation`: the hub's are finetune, adapter,
    quantized and merge, and a distilled student is none of them."""
    teacher = facts.get("teacher") or {}
    found = []
    for network in teacher.get("networks") or ([teacher] if teacher else []):
        # A run says None of weights that are on no hub; a name without a tag is no weights.
        cfg = timm_weights(str(network["name"])) if "." in str(network["name"]) else None
        found.append(network.get("hub_id", cfg.hf_hub_id if cfg else None))
    return [str(x) for x in dict.fromkeys(found) if _is_hub_id(x)]


def _dataset_id(metric: Mapping[str, Any], facts: Facts) -> str:
    """The hub's id of what a metric was measured on; a name that no dataset of the hub can have
    where it has none there."""
    named = metric.get("dataset_id")
    if facts.get("kind") == "converted":
        named = named or metric.get("dataset")
    if _is_hub_id(named):
        return str(named)
    return f"local-{slug(metric.get('dataset') or 'held-out')}"


def _leaderboards(facts: Facts) -> dict[str, list[dict[str, Any]]]:
    """File name -> entries of `.eval_results/`, one file a dataset."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    found: dict[str, list[EvalResultEntry]] = {}
    for metric in facts.get("metrics") or ():
        if metric["name"] not in REPORTED:
            continue
        dataset, source = _dataset_id(metric, facts), str(metric.get("source") or "")
        entry = EvalResultEntry(
            dataset_id=dataset,
            task_id=metric["name"],
            value=round(float(metric["value"]), 6),
            source_url=clean(source, 512) if re.match(r"https?://", source) else None,
            notes="; ".join(_notes(metric)) or None,
        )
        found.setdefault(slug(dataset), []).append(entry)
    return {name: eval_result_entries_to_yaml(entries) for name, entries in found.items()}


def _notes(metric: Mapping[str, Any]) -> Iterator[str]:
    if metric.get("low") is not None:
        yield f"95 % interval {metric['low']:.6f} to {metric['high']:.6f}"
    if metric.get("images") is not None:
        yield f"{int(metric['images'])} images"
    if metric.get("chance") is not None:
        yield f"{metric['chance']:.6f} by chance"
    if metric.get("command"):
        yield clean(metric["command"], 512)


def _body(folder: Path, facts: Facts, repo: str | None) -> Iterator[str]:
    loud = is_loud(facts["license"])
    yield f"# {prose(facts['name'], 96)}"
    if loud:
        yield _alert("WARNING", facts["license"]["note"])
    if str(facts.get("verdict") or "").removeprefix("finished, ").startswith("not learning"):
        yield _alert("WARNING", f"The run's own verdict: {facts['verdict']}")
    if facts.get("symptoms"):
        yield _alert("WARNING", f"Of these very weights: {'; '.join(facts['symptoms'])}.")
    yield _summary(facts)
    if facts.get("description"):
        yield prose(facts["description"])
    yield from _usage(facts, repo)
    yield from _results(facts)
    if (folder / CURVES).is_file():
        yield f"![Curves over steps; dotted: the step of these weights]({CURVES})"
    yield from _intended_use(facts)
    yield from _training_data(facts)
    yield from _teacher(facts)
    yield from _license_section(facts)
    yield from _recipe(facts)


def _alert(kind: str, text: str) -> str:
    return f"> [!{kind}]\n> {prose(text)}"


def _summary(facts: Facts) -> str:
    said = f"{code(facts['architecture'])} for image classification"
    if facts.get("parameters_m") is not None:
        said += f", {float(facts['parameters_m']):.2f} M parameters"
    if facts.get("macs_m") is not None:
        size = prose(facts.get("input_size", "?"), 16)
        said += f", {float(facts['macs_m']):,.0f} M multiply-adds at {size} px"
    teacher = prose((facts.get("teacher") or {}).get("name") or "another network", 256)
    made = {
        "distilled": f", distilled without labels from {teacher} by ssld"
        f"{', then trained on with human labels' if facts.get('labels_read') else ''}.",
        "supervised": ", trained with human labels by ssld.",
        "converted": ", converted to timm from weights that others published.",
    }
    said += made.get(facts.get("kind", ""), ", exported as a timm folder.")
    if facts.get("steps"):
        step, steps = int(facts["step"]), int(facts["steps"])
        stages = [prose(stage, 32) for stage in facts.get("stages") or []]
        stages = f" of the last of {', '.join(stages)}" if len(stages) > 1 else ""
        said += f" These are the weights of step {step:,} of {steps:,}{stages}."
        if not facts.get("finished"):
            said += f" **The run is not finished: it had reached step {int(facts['reached']):,}.**"
    return said


def _usage(facts: Facts, repo: str | None) -> Iterator[str]:
    name = f"hf-hub:{repo}" if repo else f"local-dir:path/to/{slug(facts['name'])}"
    lines = ["import timm"]
    yield "## Usage"
    if _needs_zoo(str(facts["architecture"])):
        lines.append("import zoo  # of ssld: registers the architecture")
        yield "Plain timm does not know this architecture; `import zoo` (of ssld) registers it."
    lines.append(f'model = timm.create_model("{name}", pretrained=True).eval()')
    cfg = "timm.data.resolve_model_data_config(model)"
    lines.append(f"transform = timm.data.create_transform(**{cfg})")
    yield block("python", "\n".join(lines))
    if repo:
        yield "`@` and a commit's 40 digits after the name pin the weights."


def _needs_zoo(architecture: str) -> bool:
    import timm

    if not architecture.endswith("_ssld"):
        return False
    registered = timm.is_model(architecture)
    return not (registered and timm.model_entrypoint(architecture).__module__.startswith("timm."))


def _results(facts: Facts) -> Iterator[str]:
    metrics = facts.get("metrics") or []
    if not metrics:
        return
    yield "## Results"
    if facts.get("verdict"):
        at = facts.get("verdict_step")
        where = f", of step {int(at):,}" if at is not None else ""
        yield f"The run's last verdict{where}: {prose(facts['verdict'])}."
    if facts.get("chosen"):
        yield f"{prose(facts['chosen'])}."
    chances = any(m.get("chance") is not None for m in metrics)
    rows = [
        (
            METRICS.get(m["name"]) or prose(m["name"], 96),
            _number(m["name"], m["value"]),
            *([_chance(m)] if chances else []),
            f"{_number(m['name'], m['low'])} to {_number(m['name'], m['high'])}"
            if m.get("low") is not None
            else "not known",
            f"{int(m['images']):,}" if m.get("images") is not None else "not known",
            prose(m.get("dataset") or "held-out images", 256),
        )
        for m in metrics
    ]
    by_chance = ("by chance",) if chances else ()
    head = ("metric", "value", *by_chance, "95 % interval (Wilson)", "images", "measured on")
    yield _table(head, rows)
    commands = dict.fromkeys(clean(m["command"], 512) for m in metrics if m.get("command"))
    if commands:
        yield "How these numbers were made; run it in this folder, with the place of your own copy:"
        yield block("bash", "\n".join(commands))
    sources = dict.fromkeys(clean(m["source"], 512) for m in metrics if m.get("source"))
    if sources:
        yield f"Published by: {', '.join(code(source, 512) for source in sources)}"


def _chance(metric: Mapping[str, Any]) -> str:
    known = metric.get("chance")
    return "–" if known is None else _number(metric["name"], known)


def _number(name: str, value: Any) -> str:
    return f"{float(value):.2%}" if name in SHARES else f"{float(value):.4f}"


def _table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _intended_use(facts: Facts) -> Iterator[str]:
    yield "## Intended use and limits"
    said = (
        "Classifying images like those it was trained on, and a starting point or a source of "
        "features for other vision tasks. Measure it on your own images first: the numbers above "
        "hold for theirs only. Not for decisions about people, and not where a wrong class does "
        "harm unless someone checks it."
    )
    if facts.get("teacher"):
        said += " It was taught by another network and repeats that network's mistakes and biases"
        said += "." if facts.get("labels_read") else "; no human label corrected them."
    yield said


def _training_data(facts: Facts) -> Iterator[str]:
    data = facts.get("data") or {}
    if not data:
        return
    yield "## Training data"
    if data.get("datasets"):
        yield f"Datasets: {', '.join(code(name) for name in data['datasets'])}."
    for key, title in (("sources", "source"), ("held_out", "held out of")):
        rows = [(prose(x["source"], 256), f"{int(x['images']):,}") for x in data.get(key) or ()]
        if rows:
            yield _table((title, "images"), rows)
    prints = [("training", data.get("sha256")), ("held-out", data.get("val_sha256"))]
    made = [f"{which} images {code(x)}" for which, x in prints if x]
    if made:
        yield f"Fingerprint (sha256 of names and sizes): {', '.join(made)}."
    curation = data.get("curation")
    if isinstance(curation, Mapping):
        rows = [(prose(k, 96), prose(v, 256)) for k, v in curation.items()]
        yield _table(("curation", ""), rows)
    else:
        yield f"Curation: {prose(curation)}" if curation else "Curation: nothing is said about it."


def _teacher(facts: Facts) -> Iterator[str]:
    teacher = facts.get("teacher") or {}
    if not teacher:
        return
    yield "## Teacher"
    for network in teacher.get("networks") or [teacher]:
        said = f"- {code(network['name'])}, licence {code(network.get('license') or 'unknown')}"
        if network.get("weights"):
            said += f", weights {code(network['weights'])}"
        if network.get("parameters_m") is not None:
            said += f", {float(network['parameters_m']):.2f} M parameters"
        yield said
    if teacher.get("top1"):
        top1 = {key: float(value) for key, value in teacher["top1"].items()}
        yield (
            f"Top-1 {top1['value']:.2%} [{top1['low']:.2%} to {top1['high']:.2%}] on "
            f"{top1['images']:,.0f} labeled images, checked before the first step."
        )
    if teacher.get("sha256"):
        yield f"sha256 of its weights: {code(teacher['sha256'])}"


def _license_section(facts: Facts) -> Iterator[str]:
    license = facts["license"]
    yield "## Licence"
    yield f"This release: {code(license['license'])}."
    rows = [(prose(x["of"], 256), code(x["license"])) for x in license["inherited"]]
    if rows:
        yield _table(("inherited from", "licence"), rows)
    if license.get("note"):
        yield _alert("WARNING" if is_loud(license) else "NOTE", license["note"])


def _recipe(facts: Facts) -> Iterator[str]:
    provenance = facts.get("provenance")
    if provenance:
        yield "## Where the weights come from"
        yield _table(("", ""), [(prose(k, 96), code(v, 512)) for k, v in provenance.items()])
    for key, title in (("recipe", "Recipe: every setting of the run"), ("versions", "Versions")):
        if facts.get(key):
            text = _yaml(facts[key])
            cut = "\n# ... the rest is in ssld.json" if len(text) > RECIPE_LIMIT else ""
            shown = "".join(c for c in text[:RECIPE_LIMIT] if c == "\n" or c.isprintable()) + cut
            yield f"<details><summary>{title}</summary>\n\n{block('yaml', shown)}\n\n</details>"
