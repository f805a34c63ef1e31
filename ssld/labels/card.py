"""README.md of a label set at another place: front matter for a hub, a body for people (`card.md`),
rendered as a backbone's card is (`zoo/publish/card.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCardData
from jinja2 import FileSystemLoader

from ssld.common.published import without_secrets
from ssld.labels.stats import summary
from zoo.licences import combine, is_loud, known, on_hub
from zoo.publish.card import ENVIRONMENT, clean

README = "README.md"
TAGS = ["ssld", "distillation", "knowledge-distillation", "stored-labels"]


def card(folder: Path, manifest: dict[str, Any], address: str, *, pinnable: bool) -> str:
    """The text.

    Args:
        folder: a finished label set.
        manifest: of it.
        address: where it will be.
        pinnable: whether a revision can stand behind the address.

    Raises:
        InputError: the set is damaged.
    """
    address = clean(without_secrets(address), 512)
    name = clean(address.rstrip("/").rpartition("/")[2], 96) or "labels"
    teachers = list(map(_teacher, manifest["teachers"]))
    license = combine(None, [(f"the teacher {x['name']}", x["license"]) for x in teachers])
    license["note"] = license["note"].replace("these weights", "these labels")
    templates = ENVIRONMENT.overlay(loader=FileSystemLoader(Path(__file__).parent))
    body = templates.get_template("card.md").render(
        name=name,
        address=address,
        pinnable=pinnable,
        manifest=manifest,
        facts=summary(folder),
        teachers=teachers,
        license=license,
        loud=is_loud(license),
        top1=manifest["described"].get("teacher_top1"),
        augment=yaml.safe_dump(manifest["augment"], sort_keys=False),
    )
    front = DatasetCardData(
        license=license["license"] if on_hub(license["license"]) else "other",
        task_categories=["image-classification"],
        tags=TAGS,
        pretty_name=name,
    ).to_dict()
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n{body.rstrip()}\n"


def _teacher(one: dict[str, Any]) -> dict[str, Any]:
    """What is known of its weights."""
    place = one.get("weights") or {}
    return {
        "name": place.get("name") or one["arch"] or "of a file",
        "license": known(place.get("license")),
        "input_size": one["input_size"],
    }
