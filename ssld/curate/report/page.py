"""`report.html` of a curation: what was taken out and why, and the least certain pairs to look at.

Everything comes from the tables as they are at this moment; images are read only to be shown.
`page.js` draws the pairs, `pairs.py` prepares them, `sets.py` what else `page.html` shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ssld.common.written_files import reading
from ssld.curate.report import pairs as curation_pairs
from ssld.curate.report import sets
from ssld.curate.report.pictures import Pictures
from ssld.curate.report.tables import Curation
from ssld.report import page


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
                "counts": sets.stages(curation),
                "leakage": sets.leakage(curation),
                "pairs": curation_pairs.overview(curation),
                "protected": sets.by_protected(curation),
                "classes": sets.by_class(curation),
                "achieved": sets.achieved(curation),
                "selected": sets.samples(curation),
                "inside-pairs": sets.inside(curation),
                "unreadable": sets.unreadable(curation),
                "hours": sets.hours(curation),
                "settings": sets.settings(curation),
            },
            data=curation_pairs.data(curation, pictures),
        )


def _lead(curation: Curation) -> str:
    images = sets.count(curation.files.get("gallery", 0), "gallery image")
    taken = sets.count(curation.near_duplicates, "near-duplicate")
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
