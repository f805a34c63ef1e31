"""`report.html` of a curation: what was taken out and why, and the least certain pairs to look at.

Everything comes from the tables as they are at this moment; images are read only to be shown.
`page.js` draws the pairs, `pairs.py` prepares them; the rest of `page.html` is made here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import yaml

from ssld.common.files import reading
from ssld.curate.report import pairs as curation_pairs
from ssld.curate.report.pairs import Pictures
from ssld.curate.tables import REASONS, Curation, rows
from ssld.report import page, plots

MOST_HITS = 20
"""Protected images in the table."""
EXAMPLES = 4
"""Gallery images beside each."""
MOST_CLASSES = 20
SAMPLED = 9
"""Classes of which selected images are shown."""
MOST_UNREADABLE = 200
OF_CLASSES = ("protected", "labeled", "excluded_key", "copy", "inside")
"""Reasons that say something about a class; the others are what selecting means."""
SHADES = dict(zip(OF_CLASSES, plots.COLOURS[1:], strict=False))
Rows = list[list[str]]


def count(number: int, noun: str) -> str:
    """As text."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def stages(curation: Curation) -> Sequence[page.Bar]:
    """Bars: how many images of the gallery each stage left."""
    left = curation.files.get("gallery", 0)
    if not left:
        return []
    blue, green = plots.COLOURS[0], plots.COLOURS[2]
    bars = [(["in the gallery", "", f"{left:,}"], [(left, blue)])]
    dropped = {"unreadable": curation.unreadable.get("gallery", 0)}
    if curation.has("dropped"):
        dropped |= curation.dropped_for
    elif curation.pairs is not None:
        dropped["protected"] = curation.near_duplicates
    for reason, images in dropped.items():
        if images:
            left -= images
            name = REASONS.get(reason, reason)
            bars.append(([name, f"-{images:,}", f"{left:,}"], [(left, blue)]))
        if reason == "unreadable" and curation.scored:
            scored = curation.scored
            bars.append((["scored by the teacher", "", f"{scored:,}"], [(scored, blue)]))
    if curation.has("selected"):
        kept = sum(curation.selected.values())
        bars.append((["selected", "", f"{kept:,}"], [(kept, green)]))
    return bars


def leakage(curation: Curation) -> dict[str, Any]:
    """Each set against each other one."""
    known = {(x["a"], x["b"]): x for x in curation.manifest.get("leakage") or []}
    names = list(dict.fromkeys(name for pair in known for name in pair))

    def cell(a: str, b: str) -> str:
        row = known.get((a, b)) or known.get((b, a))
        if row is None:
            return "" if a == b else "not compared"
        near = "not looked for" if row["near"] is None else f"{row['near']:,}"
        return f"{row['exact']:,} exact, near: {near}"

    table = [[a, *(cell(a, b) for b in names)] for a in names]
    return {"head": ["", *names], "rows": table} if table else {}


def by_protected(curation: Curation) -> dict[str, Any]:
    """Protected images by how many gallery images were found to be near-duplicates of them."""
    if curation.pairs is None:
        return {}
    duplicates = curation.pairs.filter(pc.field("verdict") == "duplicate")
    hits: dict[str, list[str]] = {}
    for pair in duplicates.select(["protected", "gallery"]).to_pylist():
        hits.setdefault(pair["protected"], []).append(pair["gallery"])
    most = sorted(hits.items(), key=lambda item: (-len(item[1]), item[0]))[:MOST_HITS]
    protected = curation.files.get("protected", 0)
    return {
        "note": f"{len(hits):,} of {protected:,} protected images have some.",
        "rows": [(name, f"{len(images):,}", sorted(images)[:EXAMPLES]) for name, images in most],
    }


def by_class(curation: Curation) -> dict[str, Any]:
    """Classes from which most was taken out, by reason."""
    dropped: dict[int, dict[str, int]] = {}
    for (reason, number), images in curation.dropped.items():
        if number is not None and reason in OF_CLASSES:
            dropped.setdefault(number, {})[reason] = images
    if not dropped:
        return {}
    order = sorted(dropped, key=lambda number: (-sum(dropped[number].values()), number))
    which = f"the {MOST_CLASSES} most affected of " if len(dropped) > MOST_CLASSES else ""
    used = set().union(*dropped.values())
    return {
        "note": f"By the class that the teacher sees; {which}{len(dropped):,} classes.",
        "legend": [(REASONS[reason], shade) for reason, shade in SHADES.items() if reason in used],
        "rows": [
            (
                [curation.class_name(number), f"{sum(dropped[number].values()):,}"],
                [(dropped[number].get(reason, 0), shade) for reason, shade in SHADES.items()],
            )
            for number in order[:MOST_CLASSES]
        ],
    }


def achieved(curation: Curation) -> dict[str, Any]:
    """How many images each class got, beside k."""
    known = curation.manifest.get("achieved_k") if curation.has("selected") else None
    counts = curation.selected if known is None else dict(enumerate(known))
    if not counts:
        return {}
    k = curation.setting("select", "k", None)
    ordered = np.sort(list(counts.values()))[::-1]
    figure = plots.new_figure()
    plot = plots.axes(figure, "classes, the fullest first")
    plot.stairs(ordered, fill=True, color=plots.COLOURS[0])
    plot.set_xlim(0, len(ordered))
    plot.locator_params(integer=True)
    plot.set_ylim(0, 1.08 * max(k or 0, int(ordered[0]), 1))
    if k is not None:
        plot.axhline(k, color="#1b1f24", lw=1, ls="--")
    caption = "images per class" + (f"; dashed: k = {k:,}" if k else "")
    return {"note": _short_of(curation, counts, k), "figure": page.plot(caption, figure)}


def _short_of(curation: Curation, counts: dict[int, int], k: int | None) -> str:
    if k is None:
        return ""
    short = sorted((images, number) for number, images in counts.items() if images < k)
    if not short:
        return f"All {len(counts):,} classes have {k:,} images."
    empty = sum(not images for images, _ in short)
    names = ", ".join(
        f"{curation.class_name(n)} ({images:,})" for images, n in short[:MOST_CLASSES]
    )
    more = f" and {len(short) - MOST_CLASSES:,} more" if len(short) > MOST_CLASSES else ""
    return (
        f"{len(counts) - len(short):,} of {len(counts):,} classes have {k:,} images. "
        f"{len(short):,} are short, {empty:,} of them empty: {names}{more}."
    )


def samples(curation: Curation) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Some classes with their images: the best, the median and the last one of each."""
    classes = list(curation.selected)
    if not classes:
        return []
    places = np.linspace(0, len(classes) - 1, min(SAMPLED, len(classes))).round().astype(int)
    chosen = [classes[place] for place in places]
    ranks = {n: list(dict.fromkeys((1, (k + 1) // 2, k))) for n, k in curation.selected.items()}
    every_rank = sorted({rank for number in chosen for rank in ranks[number]})
    wanted = pc.field("class").isin(chosen) & pc.field("rank").isin(every_rank)
    images = {
        (row["class"], row["rank"]): row
        for row in curation.rows("selected", ["class", "rank", "score", "location"], wanted)
    }
    return [
        (
            curation.class_name(number),
            f"{curation.selected[number]:,}",
            [images[number, rank] for rank in ranks[number] if (number, rank) in images],
        )
        for number in chosen
    ]


def inside(curation: Curation) -> str:
    """How many images another one of the selection was left in for."""
    images = curation.dropped_for["inside"]
    return count(images, "image") if images and curation.has("inside") else ""


def unreadable(curation: Curation) -> dict[str, Any]:
    """Files that cannot be read, and why."""
    columns = ["set", "location", "reason"]
    table = rows(curation.out / "index", columns, pc.field("reason").is_valid())
    if not table:
        return {}
    files = [(row["location"], row["set"], row["reason"]) for row in table.to_pylist()]
    reasons = Counter((where, why) for _, where, why in files)
    most = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:MOST_CLASSES]
    shown = files[:MOST_UNREADABLE]
    return {
        "reasons": [(f"{images:,}", *place) for place, images in most],
        "which": f"The first {len(shown)} of {len(files):,}:"
        if len(files) > len(shown)
        else "All:",
        "rows": shown,
    }


def hours(curation: Curation) -> Rows:
    """What was foreseen beside what it took."""
    projected, measured = _logged(curation)
    projected = curation.manifest.get("projected") or projected
    measured = curation.manifest.get("measured") or measured
    stages = dict.fromkeys([*projected, *measured])
    return [[x, _duration(projected.get(x)), _duration(measured.get(x))] for x in stages]


def _logged(curation: Curation) -> tuple[dict[str, float], dict[str, float]]:
    """Foreseen and measured hours of stages that log.jsonl tells of. Processes work side by side:
    what one took on average."""
    projected: dict[str, float] = {}
    seconds: dict[str, float] = {}
    processes: dict[str, set[int]] = {}
    for line in curation.log:
        stage = line["stage"].split()[0]
        if "hours" in line:
            projected = line["hours"]
        elif "seconds" in line:
            seconds[stage] = seconds.get(stage, 0.0) + line["seconds"]
            processes.setdefault(stage, set()).add(line.get("process", 0))
    measured = {stage: total / len(processes[stage]) / 3600 for stage, total in seconds.items()}
    return projected, measured


def _duration(hours: float | None) -> str:
    if hours is None:
        return "-"
    if hours < 1 / 60:
        return f"{3600 * hours:.2g} s"
    return f"{60 * hours:.2g} min" if hours < 1 else f"{hours:,.1f} h"


def settings(curation: Curation) -> dict[str, Any]:
    """Settings as YAML, and versions."""
    known = {key: curation.manifest.get(key) or {} for key in ("settings", "versions")}
    if not any(known.values()):
        return {}
    shown = yaml.safe_dump(known["settings"], sort_keys=False, allow_unicode=True)
    versions = sorted((name, str(value)) for name, value in known["versions"].items())
    return {"settings": shown if known["settings"] else "", "versions": versions}


def write_report(out: Path, read: Callable[[str], bytes]) -> None:
    """Write `report.html` into the folder of a curation from the tables that are there.

    Args:
        read: the bytes of the image at a location of the tables; OSError, Unreadable or KeyError
            where it is gone, which the page then says in its place.

    Raises:
        InputError: manifest.json or a table is not what a curation wrote.
    """
    curation, pictures = Curation(out), Pictures(read)
    with reading(out, "move what was changed away, and run `ssld curate` again"):
        page.write_page(
            out / "report.html",
            "ssld/curate/report/page.html",
            title=out.resolve().name,
            lead=_lead(curation),
            warnings=curation.manifest.get("warnings", []),
            thumbnail=pictures.thumbnail,
            values={
                "counts": stages(curation),
                "leakage": leakage(curation),
                "pairs": curation_pairs.overview(curation),
                "protected": by_protected(curation),
                "classes": by_class(curation),
                "achieved": achieved(curation),
                "selected": samples(curation),
                "inside-pairs": inside(curation),
                "unreadable": unreadable(curation),
                "hours": hours(curation),
                "settings": settings(curation),
            },
            data=curation_pairs.data(curation, pictures),
        )


def _lead(curation: Curation) -> str:
    images = count(curation.files.get("gallery", 0), "gallery image")
    taken = count(curation.near_duplicates, "near-duplicate")
    if curation.has("selected"):
        kept = sum(curation.selected.values())
        were = "was" if curation.near_duplicates == 1 else "were"
        return f"Of {images}, {kept:,} were kept. {taken} of protected images {were} taken out."
    if curation.pairs is not None:
        among = f"Among {images}: " if curation.files else ""
        return f"{among}{taken} of protected images found so far. Nothing is selected yet."
    if curation.files:
        return f"{images} found. Nothing has been compared or selected yet."
    return "Nothing has been done yet."
