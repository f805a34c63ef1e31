"""Sections of a curation's report that count: by set, by protected image, by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ssld.curate.report.pictures import Pictures
from ssld.curate.report.tables import Curation, rows
from ssld.curate.tables import REASONS
from ssld.report import page

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


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Of cells that are HTML; scrolls in a box of its own."""
    body = "".join(f"<tr><th>{x[0]}</th><td>{'</td><td>'.join(x[1:])}</td></tr>" for x in lines)
    top = "".join(f"<th>{escape(x)}</th>" for x in head)
    return f'<div class="scroll" tabindex="0"><table><tr>{top}</tr>{body}</table></div>'


def leakage(curation: Curation) -> str:
    """Each set against each other one."""
    found = {(x["a"], x["b"]): x for x in curation.manifest.get("leakage") or []}
    if not found:
        return ""
    names = list(dict.fromkeys(name for pair in found for name in pair))

    def cell(a: str, b: str) -> str:
        row = found.get((a, b)) or found.get((b, a))
        if row is None:
            return "&nbsp;" if a == b else "not compared"
        near = "not looked for" if row["near"] is None else f"{row['near']:,}"
        return f"{row['exact']:,} exact, near: {near}"

    lines = [[escape(a), *(cell(a, b) for b in names)] for a in names]
    note = "Exact: the same bytes or pixels. Near: edits of the same picture."
    return f'<p class="note">{note}</p>{_table(["", *names], lines)}'


def by_protected(curation: Curation, pictures: Pictures) -> str:
    """Protected images by how many gallery images were found to be near-duplicates of them."""
    if curation.pairs is None:
        return ""
    found = curation.pairs.filter(pc.field("verdict") == "duplicate")
    counts = Counter(found["protected"].to_pylist())
    if not counts:
        return "<p>No gallery image is a near-duplicate of a protected one.</p>"
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_HITS]
    hits: dict[str, list[str]] = {location: [] for location, _ in most}
    pairs = zip(found["protected"].to_pylist(), found["gallery"].to_pylist(), strict=True)
    for protected, gallery in sorted(pairs):
        if len(hits.get(protected, [""] * EXAMPLES)) < EXAMPLES:
            hits[protected].append(gallery)
    lines = [
        [
            escape(location),
            pictures.thumb(location),
            f"{count:,}",
            f'<div class="thumbs">{"".join(map(pictures.thumb, hits[location]))}</div>',
        ]
        for location, count in most
    ]
    of = f"{len(counts):,} of {curation.files.get('protected', 0):,} protected images have some."
    return f'<p class="note">{of}</p>' + _table(["protected", "", "found", "for example"], lines)


def by_class(curation: Curation) -> str:
    """Classes from which most was taken out, by reason."""
    found: dict[int, dict[str, int]] = {}
    for (reason, number), count in curation.dropped.items():
        if number is not None and reason in OF_CLASSES:
            found.setdefault(number, {})[reason] = count
    if not found:
        return ""
    order = sorted(found, key=lambda number: (-sum(found[number].values()), number))
    shades: dict[str, str] = dict(zip(OF_CLASSES, page.COLOURS[1:], strict=False))
    lines = [
        (
            [curation.class_name(number), f"{sum(found[number].values()):,}"],
            [(found[number].get(reason, 0), shade) for reason, shade in shades.items()],
        )
        for number in order[:MOST_CLASSES]
    ]
    used = [reason for reason in OF_CLASSES if any(reason in x for x in found.values())]
    legend = "".join(
        f'<span><i style="background:{shades[reason]}"></i>{escape(REASONS[reason])}</span>'
        for reason in used
    )
    which = f"the {MOST_CLASSES} most affected of " if len(found) > MOST_CLASSES else ""
    note = f"By the class that the teacher sees; {which}{len(found):,} classes."
    said = f'<p class="note">{note}</p><p class="legend">{legend}</p>'
    return said + page.bars(lines, ["class", "images"])


def achieved(curation: Curation) -> str:
    """How many images each class got, beside k."""
    known = curation.manifest.get("achieved_k") if curation.has("selected") else None
    counts = curation.selected if known is None else dict(enumerate(known))
    if not counts:
        return ""
    k = curation.setting("select", "k", None)
    ordered = np.sort(list(counts.values()))[::-1]
    figure = page.new_figure()
    plot = page.axes(figure, "classes, the fullest first")
    plot.stairs(ordered, fill=True, color=page.COLOURS[0])
    plot.set_xlim(0, len(ordered))
    plot.locator_params(integer=True)
    plot.set_ylim(0, 1.08 * max(k or 0, int(ordered[0]), 1))
    if k is not None:
        plot.axhline(k, color="#1b1f24", lw=1, ls="--")
    drawn = page.drawn("images per class" + (f"; dashed: k = {k:,}" if k else ""), figure)
    return f"{_shortness(curation, counts, k)}<div class='row'>{drawn}</div>"


def _shortness(curation: Curation, counts: dict[int, int], k: int | None) -> str:
    if k is None:
        return ""
    short = sorted((count, number) for number, count in counts.items() if count < k)
    if not short:
        return f"<p>All {len(counts):,} classes have {k:,} images.</p>"
    empty = sum(not count for count, _ in short)
    named = ", ".join(f"{curation.class_name(n)} ({count:,})" for count, n in short[:MOST_CLASSES])
    more = f" and {len(short) - MOST_CLASSES:,} more" if len(short) > MOST_CLASSES else ""
    return (
        f"<p>{len(counts) - len(short):,} of {len(counts):,} classes have {k:,} images. "
        f"{len(short):,} are short, {empty:,} of them empty: {escape(named)}{more}.</p>"
    )


def samples(curation: Curation, pictures: Pictures) -> str:
    """The best, the median and the last image of some classes."""
    classes = list(curation.selected)
    if not classes:
        return ""
    places = np.linspace(0, len(classes) - 1, min(SAMPLED, len(classes))).round().astype(int)
    chosen = [classes[place] for place in places]
    ranks = {number: (1, (n + 1) // 2, n) for number, n in curation.selected.items()}
    wanted = pc.field("class").isin(chosen) & pc.field("rank").isin(
        sorted({rank for number in chosen for rank in ranks[number]})
    )
    found = curation.rows("selected", ["class", "rank", "score", "location"], wanted)
    images = {(row["class"], row["rank"]): row for row in found}
    cards = []
    for number in chosen:
        shown = [images[number, r] for r in dict.fromkeys(ranks[number]) if (number, r) in images]
        figures = "".join(
            f"<figure>{pictures.thumb(row['location'])}<figcaption>rank {row['rank']:,}, "
            f"{row['score']:.1%}</figcaption></figure>"
            for row in shown
        )
        name = escape(curation.class_name(number))
        cards.append(f"<div><b>{name}</b>{curation.selected[number]:,} images<br>{figures}</div>")
    note = "The surest, the middle and the last image of some classes, with the teacher's score."
    return f'<p class="note">{note}</p><div class="samples">{"".join(cards)}</div>'


def unreadable(curation: Curation) -> str:
    """Files that cannot be read, and why."""
    if not curation.unreadable:
        return ""
    columns = ["set", "location", "reason"]
    found = rows(curation.out / "index", columns, pc.field("reason").is_valid())
    assert found is not None
    reasons = Counter(zip(found["set"].to_pylist(), found["reason"].to_pylist(), strict=True))
    most = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:MOST_CLASSES]
    lines = [[f"{count:,}", escape(where), escape(why)] for (where, why), count in most]
    counts = _table(["files", "set", "reason"], lines)
    shown: list[dict[str, Any]] = found.slice(0, MOST_UNREADABLE).to_pylist()
    lines = [[escape(row["location"]), escape(row["set"]), escape(row["reason"])] for row in shown]
    first = f"The first {len(shown)} of {len(found):,}:" if len(found) > len(shown) else "All:"
    listed = _table(["file", "set", "reason"], lines)
    return f'{counts}<p class="note">{first}</p>{listed}'


def hours(curation: Curation) -> str:
    """What was foreseen beside what it took."""
    projected, measured = _logged(curation)
    projected = curation.manifest.get("projected") or projected
    measured = curation.manifest.get("measured") or measured
    stages = list(dict.fromkeys([*projected, *measured]))
    if not stages:
        return ""
    lines = [[escape(x), _duration(projected.get(x)), _duration(measured.get(x))] for x in stages]
    return _table(["stage", "projected before the work began", "measured"], lines)


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
    measured = {stage: sum_ / len(processes[stage]) / 3600 for stage, sum_ in seconds.items()}
    return projected, measured


def _duration(hours: float | None) -> str:
    if hours is None:
        return "-"
    if hours < 1 / 60:
        return f"{3600 * hours:.2g} s"
    return f"{60 * hours:.2g} min" if hours < 1 else f"{hours:,.1f} h"
