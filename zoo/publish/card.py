"""The model card of a release, from the facts of its `ssld.json`: front matter that the hub's own
classes and YAML write, a body that people read (`card.md`), and `.eval_results/` for leaderboards.

Whatever a fact says is a stranger's text; it gets onto the card by three ways only, all of
`clean`: `prose`, for all that the templates do not mark otherwise (every character that Markdown or
HTML could take for syntax as a numeric entity, which CommonMark 0.31, section 2.5, never takes for
structure), `code` (a code span) and `block` (a fence longer than any inside it).
"""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from zoo.errors import InputError
from zoo.licences import TERMS_FILE, front_matter, is_loud, known, of_release, timm_weights
from zoo.registration import UNTRAINED
from zoo.release import HUB_ID

if TYPE_CHECKING:
    from huggingface_hub import EvalResultEntry

LIMIT = 2_000
"""Characters of one text on a card; all of it is in ssld.json."""


def prose(text: object, limit: int = LIMIT) -> Markup:
    """Any text as plain words of a Markdown paragraph, heading or table cell."""
    cleaned = clean(text, limit)
    # A word joiner: some renderers make links of bare addresses after entities were decoded.
    cleaned = re.sub(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?=@)", "\u2060", cleaned, flags=re.IGNORECASE)
    escaped = re.sub(r"[^\w\s.,:;?!%/()'\"\u2060-]|(?<!\w)_|_(?!\w)", _entity, cleaned)
    return Markup(re.sub(r"^(?:-|\d+(?=[.)]))", _entity, escaped))  # or it would begin a list


def code(text: object, limit: int = 256) -> Markup:
    """Any text as a code span, also in a table."""
    return Markup(f"`{clean(text, limit).replace('`', chr(39)).replace('|', '¦') or '?'}`")


def clean(text: object, limit: int) -> str:
    """One line without control, format or unassigned characters, cut to `limit`."""
    whole = str(text)[: 8 * limit]
    seen = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in whole)
    line = " ".join(seen.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _entity(match: re.Match[str]) -> str:
    return "".join(f"&#{ord(c)};" for c in match.group())


def block(text: str, language: str) -> Markup:
    """A fenced block that its own text cannot close."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def slug(text: object) -> str:
    """A file's or a model's name made of any text."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", clean(text, 96)).strip("-.") or "model"


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
    "feature_agreement": "feature agreement with the teacher",
    "ece": "expected calibration error",
}
SHARES = tuple(METRICS)[:6]
"""Metrics that are shares of images, shown in percent."""
REPORTED = {"top1": "accuracy", "top5": "accuracy", "agreement1": "agreement"}
"""What goes into the front matter and to leaderboards: our name -> the hub's metric type."""
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
        data, results = _front_matter(facts), _leaderboards(facts)
        values = _values(folder, facts, repo)
        body, terms = (_render(name, values) for name in ("card.md", "licence.md"))
    except (
        AttributeError, LookupError, TypeError, ValueError, ArithmeticError, TemplateError
    ) as error:  # fmt: skip
        raise InputError(f"{folder}: the facts for the card are damaged ({error!r})") from error
    _write(folder / "README.md", f"---\n{_yaml(data)}---\n\n{body}")
    shutil.rmtree(folder / EVAL_RESULTS, ignore_errors=True)
    for name, entries in results.items():
        _write(folder / EVAL_RESULTS / f"{name}.yaml", _yaml(entries))
    if "license_link" in data:
        _write(folder / TERMS_FILE, terms)


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def _front_matter(facts: Facts) -> dict[str, Any]:
    teacher = facts.get("teacher")
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=_dataset_id(metric, facts),
            dataset_name=clean(metric.get("dataset") or "held-out images", 96),
            metric_type=REPORTED[metric["name"]],
            metric_name=METRICS[metric["name"]],
            metric_value=round(float(metric["value"]), 6),
        )
        for metric in facts.get("metrics") or ()
        if metric["name"] in REPORTED
    ]
    datasets = [x for x in (facts.get("data") or {}).get("datasets") or () if _is_hub_id(x)]
    terms = front_matter(known(facts["license"]["license"]) or "unknown")
    task = "image-feature-extraction" if facts.get("features_alone") else "image-classification"
    card = ModelCardData(
        license=terms["license"],
        license_name=terms.get("license_name"),
        license_link=terms.get("license_link"),
        library_name="timm",
        pipeline_tag=task,
        tags=[task, "timm", "ssld", *(["distillation"] if teacher else [])],
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
    ids = []
    for network in teacher.get("networks") or ([teacher] if teacher else []):
        # A run says None of weights that are on no hub; a name without a tag is no weights.
        cfg = timm_weights(str(network["name"])) if "." in str(network["name"]) else None
        ids.append(network.get("hub_id", cfg.hf_hub_id if cfg else None))
    return [str(x) for x in dict.fromkeys(ids) if _is_hub_id(x)]


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
    reported = [x for x in facts.get("metrics") or () if x["name"] in REPORTED]
    if not reported:
        return {}
    try:  # here, as all else of a card is also for huggingface_hub 1.0 to 1.3
        from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    except ImportError as error:
        raise InputError(
            "a release that states what it measured needs huggingface-hub 1.4 or later: "
            "pip install --upgrade huggingface-hub"
        ) from error
    files: dict[str, list[EvalResultEntry]] = {}
    for metric in reported:
        dataset, source = _dataset_id(metric, facts), str(metric.get("source") or "")
        entry = EvalResultEntry(
            dataset_id=dataset,
            task_id=metric["name"],
            value=round(float(metric["value"]), 6),
            source_url=clean(source, 512) if re.match(r"https?://", source) else None,
            notes="; ".join(_notes(metric)) or None,
        )
        files.setdefault(slug(dataset), []).append(entry)
    return {name: eval_result_entries_to_yaml(entries) for name, entries in files.items()}


def _notes(metric: Mapping[str, Any]) -> Iterator[str]:
    if metric.get("low") is not None:
        yield f"95 % interval {metric['low']:.6f} to {metric['high']:.6f}"
    if metric.get("images") is not None:
        yield f"{int(metric['images'])} images"
    if metric.get("chance") is not None:
        yield f"{metric['chance']:.6f} by chance"
    if metric.get("command"):
        yield clean(metric["command"], 512)


def _values(folder: Path, facts: Facts, repo: str | None) -> dict[str, Any]:
    """What `card.md` and `licence.md` name."""
    metrics, architecture = facts.get("metrics") or [], str(facts["architecture"])
    commands = (clean(m["command"], 512) for m in metrics if m.get("command"))
    sources = (clean(m["source"], 512) for m in metrics if m.get("source"))
    return {
        "facts": facts,
        "license": facts["license"],
        "loud": is_loud(facts["license"]),
        "teacher": facts.get("teacher") or {},
        "data": facts.get("data") or {},
        "model": f"hf-hub:{repo}" if repo else f"local-dir:path/to/{slug(facts['name'])}",
        "pinnable": repo is not None,
        "needs_zoo": _needs_zoo(architecture),
        "curves": CURVES if (folder / CURVES).is_file() else None,
        "metrics": [_shown(metric) for metric in metrics],
        "commands": dict.fromkeys(commands),
        "sources": dict.fromkeys(sources),
        "details": list(_details(facts)),
    }


def _needs_zoo(architecture: str) -> bool:
    if not (architecture.endswith("_ssld") or architecture in UNTRAINED):
        return False
    registered = timm.is_model(architecture)
    return not (registered and timm.model_entrypoint(architecture).__module__.startswith("timm."))


def number(value: Any, spec: str) -> Markup:
    """A number as `format` writes it, which is no Markdown.

    Raises:
        ValueError, TypeError: it is none.
    """
    return Markup(format(float(value), spec))


def _shown(metric: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a metric's row; None where one is not known."""

    def shown(key: str, spec: str) -> Markup | None:
        return None if metric.get(key) is None else number(metric[key], spec)

    name = metric["name"]
    spec = ".2%" if name in SHARES else ".4f"
    low = shown("low", spec)
    return {
        "label": Markup(METRICS[name]) if name in METRICS else prose(name, 96),
        "value": number(metric["value"], spec),
        "chance": shown("chance", spec),
        "interval": low and Markup("{} to {}").format(low, number(metric["high"], spec)),
        "images": shown("images", ",.0f"),
        "dataset": metric.get("dataset") or "held-out images",
    }


def _details(facts: Facts) -> Iterator[tuple[str, str]]:
    """Title and text of what is folded away."""
    for key, title in (("recipe", "Recipe: every setting of the run"), ("versions", "Versions")):
        if facts.get(key):
            text = _yaml(facts[key])
            cut = "\n# ... the rest is in ssld.json" if len(text) > RECIPE_LIMIT else ""
            kept = "".join(c for c in text[:RECIPE_LIMIT] if c == "\n" or c.isprintable())
            yield title, kept + cut


def _render(template: str, values: Mapping[str, Any]) -> str:
    return ENVIRONMENT.get_template(template).render(values).rstrip("\n") + "\n"


ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,  # markup is what a filter or a macro made; all else is `prose`
    finalize=lambda value: value if hasattr(value, "__html__") else prose(value),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.filters |= {"prose": prose, "code": code, "block": block}
ENVIRONMENT.filters["number"] = number
ENVIRONMENT.tests["startingwith"] = str.startswith
