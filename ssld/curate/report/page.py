"""`report.html` of a curation: what was taken out and why, and the least certain pairs to look at.

Everything comes from the tables as they are at this moment; images are read only to be shown.
`page.js` draws the pairs, `pairs.py` prepares them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape
from importlib.resources import files
from pathlib import Path

import yaml

from ssld.common.written_files import reading
from ssld.curate.report import pairs as curation_pairs
from ssld.curate.report.pictures import Pictures
from ssld.curate.report.sets import (
    achieved,
    by_class,
    by_protected,
    hours,
    leakage,
    samples,
    unreadable,
)
from ssld.curate.report.tables import Curation
from ssld.curate.tables import REASONS
from ssld.report import page

CHECKERBOARD = (
    '<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>'
    '<pattern id="squares" width="64" height="64" patternUnits="userSpaceOnUse">'
    '<path d="M0 0h32v32H0zM32 32h32v32H32z" fill="#fff"/></pattern>'
    '<mask id="checkerboard" maskUnits="userSpaceOnUse" x="-1" y="-1" width="1000" height="1000">'
    '<rect x="-1" y="-1" width="1000" height="1000" fill="url(#squares)"/></mask></defs></svg>'
)


def write_report(out: Path, read: Callable[[str], bytes]) -> None:
    """Write `report.html` into the folder of a curation from the tables that are there.

    Args:
        read: the bytes of the image at a location of the tables; OSError, Unreadable or KeyError
            where it is gone, which the page then says in its place.

    Raises:
        InputError: manifest.json or a table is not what a curation wrote.
    """
    title = out.resolve().name
    with reading(out, "move what was changed away, and run `ssld curate` again"):
        body = _body(out, title, read)
    page.write_page(out / "report.html", f"{title}: curation", body)


def _body(out: Path, title: str, read: Callable[[str], bytes]) -> list[str]:
    curation, pictures = Curation(out), Pictures(read)
    sections = [
        ("counts", "From the gallery to the selection", _stages(curation)),
        ("leakage", "Images that two sets share", leakage(curation)),
        ("pairs", "Found pairs, the least certain first", _pairs(curation)),
        (
            "protected",
            "Protected images with most near-duplicates",
            by_protected(curation, pictures),
        ),
        ("classes", "What was taken out, by class", by_class(curation)),
        ("achieved", "Images per class", achieved(curation)),
        ("selected", "What the teacher chose", samples(curation, pictures)),
        ("inside-pairs", "Near-duplicates inside the selection", _inside(curation)),
        ("unreadable", "Files that cannot be read", unreadable(curation)),
        ("hours", "Hours", hours(curation)),
        ("settings", "Settings and versions", _settings(curation)),
    ]
    shown = [(name, head, body) for name, head, body in sections if body]
    links = "".join(f'<a href="#{name}">{escape(head)}</a>' for name, head, _ in shown)
    embedded = json.dumps(curation_pairs.data(curation, pictures), ensure_ascii=False).replace(
        "<", "\\u003c"
    )
    return [
        f"<style>{_resource('page.css')}</style>{CHECKERBOARD}<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(_lead(curation))}</p>',
        *(
            f'<p class="verdict flat">{escape(x)}</p>'
            for x in curation.manifest.get("warnings", [])
        ),
        f"<nav>{links}</nav>",
        *(
            f'<section id="{name}"><h2>{escape(head)}</h2>{body}</section>'
            for name, head, body in shown
        ),
        f'<script type="application/json" id="data">{embedded}</script>',
        f"<script>{_resource('page.js')}</script>",
    ]


def _resource(name: str) -> str:
    return files("ssld.curate.report").joinpath(name).read_text(encoding="utf-8")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _lead(curation: Curation) -> str:
    images = _count(curation.files.get("gallery", 0), "gallery image")
    taken = _count(curation.near_duplicates, "near-duplicate")
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


def _stages(curation: Curation) -> str:
    left = curation.files.get("gallery", 0)
    if not left:
        return ""
    blue = page.COLOURS[0]
    rows = [(["in the gallery", "", f"{left:,}"], [(left, blue)])]
    dropped = {"unreadable": curation.unreadable.get("gallery", 0)}
    if curation.has("dropped"):
        dropped |= curation.dropped_for
    elif curation.pairs is not None:
        dropped["protected"] = curation.near_duplicates
    for reason, count in dropped.items():
        if count:
            left -= count
            said = REASONS.get(reason, reason)
            rows.append(([said, f"-{count:,}", f"{left:,}"], [(left, blue)]))
        if reason == "unreadable" and curation.scored:
            scored = curation.scored
            rows.append((["scored by the teacher", "", f"{scored:,}"], [(scored, blue)]))
    if curation.has("selected"):
        kept = sum(curation.selected.values())
        rows.append((["selected", "", f"{kept:,}"], [(kept, page.COLOURS[2])]))
    return page.bars(rows, ["", "out", "left"])


def _pairs(curation: Curation) -> str:
    if curation.pairs is None:
        return ""
    found, compared = len(curation.pairs), f"{curation.compared:,}"
    shown = curation_pairs.SHOWN
    if not found:
        return f"<p>None of {compared} compared pairs have enough in common to be shown.</p>"
    more = (
        f" Of {found:,} pairs with something in common, the {shown} closest to a threshold are "
        f"here, on both sides of it; all {compared} compared pairs are in pairs.parquet."
        if found > shown
        else f" All {compared} compared pairs are in pairs.parquet."
    )
    overrides = escape(str(curation.out / "overrides.jsonl"))
    return (
        '<p class="note">Lines join points that match (inliers); the third picture is the gallery '
        f"image laid onto the protected one.{more}</p>"
        "<noscript><p>The pairs are drawn by a script, which this browser does not run.</p>"
        '</noscript><div id="thresholds"></div><p class="note">Counted from the stored pairs. '
        "Nothing is compared again, and images that would take a freed place are not known before "
        "a new run.</p><p>Approve or reject what you see, then <button type=button id=export>"
        f"save overrides.jsonl</button> (<span id=judged></span>), put it at <code>{overrides}"
        '</code> and run the same command again.</p><div id="list"></div>'
    )


def _inside(curation: Curation) -> str:
    count = curation.dropped_for["inside"]
    if not curation.has("inside") or not count:
        return ""
    said = _count(count, "image")
    return (
        f'<p class="note">{said} left out because a better scored image of the selection shows the '
        'same; some of the least certain:</p><div id="inside"></div>'
    )


def _settings(curation: Curation) -> str:
    settings, versions = curation.manifest.get("settings"), curation.manifest.get("versions")
    found = ""
    if settings:
        shown = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        found += f"<pre>{escape(shown)}</pre>"
    if versions:
        found += page.table([(name, str(value)) for name, value in sorted(versions.items())])
    return found
