"""`ssld curate [STAGE] --config F.yaml`: stages in order; each skips what is done and unchanged.

index       every file's hashes, size and mode            ssld/curate/sets/index.py
score       the teacher on the pool                       ssld/curate/select/score.py
duplicates  the pool against the reference set            ssld/curate/near_duplicates/search.py
select      the best of each class that leak nothing      ssld/curate/select/select.py
report      tables to look at                             ssld/curate/report/page.py

A stage runs those before it, as far as they are not done. Without a stage all run, and `select`
then asks for no more of `duplicates` than it needs.
"""

from __future__ import annotations

import numpy as np

from ssld.common.errors import attempt
from ssld.curate import manifest
from ssld.curate.config import CurateConfig
from ssld.curate.context import Work
from ssld.curate.folder import opened
from ssld.curate.near_duplicates.projection import project
from ssld.curate.near_duplicates.reference_set import prepare
from ssld.curate.near_duplicates.search import Examination, write_pairs
from ssld.curate.report.page import write_report
from ssld.curate.select.score import Scorer, embed_reference_set, score, verify
from ssld.curate.select.select import excluded_keys, select, write_selection
from ssld.curate.sets.images import ImageSet
from ssld.curate.sets.index import build, reader
from ssld.engine.loop import lost_processes


@lost_processes("curation")
def curate(config: CurateConfig, stage: str | None = None) -> None:
    """Run `stage` and what it needs, or everything.

    Raises:
        InputError: bad settings, sources or weights; an empty reference set; too many unreadable
            files; a full disk. Tables written so far stay valid.
        Interrupted: another process is gone; the same command goes on.
    """
    work = Work(config)
    if stage == "report":
        return _report(work)
    given = {"gallery": config.gallery, "protected": config.protected, "labeled": config.labeled}
    sets = {
        name: ImageSet(name, paths, config.shard_size) for name, paths in given.items() if paths
    }
    scorer = None
    if config.has_teacher and stage != "index":
        scorer = Scorer(work, sets.get("labeled"))
        verify(work, scorer, sets.get("labeled"))
    excluded = excluded_keys(config) if stage in (None, "select") else set()
    with opened(work):
        _run(work, stage, sets, scorer, excluded)


def _run(
    work: Work,
    stage: str | None,
    sets: dict[str, ImageSet],
    scorer: Scorer | None,
    excluded: set[str],
) -> None:
    if stage in (None, "duplicates"):
        project(work, sets, scorer)
    indexes = {name: build(work, images) for name, images in sets.items()}
    pool, reference, labeled = indexes["gallery"], indexes["protected"], indexes.get("labeled")
    if stage == "index":
        return manifest.write_on_main(work, indexes, None, {}, ())

    scores = score(work, scorer, pool) if scorer else None
    if stage == "score":
        return manifest.write_on_main(work, indexes, scorer, {}, ())

    views = embed_reference_set(work, scorer, reference) if scorer else []
    ready = prepare(work, reference, scorer.key if scorer else None, views)
    examination = Examination(work, pool, reference, scores, ready)
    if stage == "duplicates":
        examination.examine(np.arange(len(pool.images)))
        _, hits = write_pairs(work, examination)
        facts = manifest.examined(work, examination, labeled, hits)
        return manifest.write_on_main(work, indexes, scorer, facts, ("pairs",))

    assert scorer and scores, "nothing is selected without a teacher"
    outcome = select(work, examination, scores, labeled, scorer.num_classes, excluded)
    closest, hits = write_pairs(work, examination)
    facts = {}
    if work.main:
        write_selection(work, pool, scores, outcome, closest)
        facts = manifest.examined(work, examination, labeled, hits)
        facts |= manifest.selected(outcome, work.config.select.k)
    manifest.write_on_main(work, indexes, scorer, facts, manifest.TABLES)
    kept = len(outcome.selection.row)
    work.say(f"{work.out}/selected.parquet: {kept:,} of {len(pool.images):,} images")
    if stage is None:
        attempt("report.html", lambda: _report(work))


def _report(work: Work) -> None:
    if work.main:
        write_report(work.out, reader(work.out))
        work.say(f"{work.out}/report.html")
