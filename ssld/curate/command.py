"""`ssld curate [STAGE] --config F.yaml`: stages in order; each skips what is done and unchanged.

index       every file's hashes, size and mode           ssld/curate/sets/index.py
score       the teacher on the gallery                   ssld/curate/select/score.py
duplicates  the gallery against the protected sets       ssld/curate/near_duplicates/search.py
select      the best of each class that leak nothing     ssld/curate/select/select.py
report      tables to look at                            ssld/curate/report/page.py

A stage runs those before it, as far as they are not done. Without a stage all run, and `select`
then asks for no more of `duplicates` than it needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from ssld.common.errors import InputError, Interrupted
from ssld.common.files import locked, write_atomically
from ssld.common.written_files import read_object
from ssld.curate.config import CurateConfig
from ssld.engine.overwrite import inputs_inside
from ssld.engine.run_folder import LOCK, TEMPORARY

if TYPE_CHECKING:  # none of it is needed for --help
    import pyarrow as pa

    from ssld.curate.context import Work
    from ssld.curate.near_duplicates.search import Examination
    from ssld.curate.select.score import Scorer
    from ssld.curate.select.scores import Scores
    from ssld.curate.sets.images import ImageSet
    from ssld.curate.sets.index import Index

INPUTS = ("gallery", "protected", "labeled", "teacher")
WRITTEN = {"gallery", "protected", "labeled", "engine", "shard_size", "max_unreadable", "out"}
"""All of them are in the config.yaml of a curation; in one that a user wrote some are missing."""


@contextlib.contextmanager
def _lost_processes() -> Iterator[None]:
    """
    Raises:
        Interrupted: another process of this curation is gone.
    """
    try:
        yield
    except RuntimeError as error:
        from ssld.engine.loop import lost_process  # not before: it imports torch

        lost = lost_process(error)
        if lost is None:
            raise
        said = str(lost).replace("of this run", "of this curation")
        said = said.replace("go on with --resume", "the same command goes on")
        raise Interrupted(said) from error


@_lost_processes()
def curate(config: CurateConfig, stage: str | None = None) -> None:
    """Run `stage` and what it needs, or everything.

    Raises:
        InputError: bad settings, sources or weights; an empty protected set; too many unreadable
            files; a full disk. Tables written so far stay valid.
        Interrupted: another process is gone; the same command goes on.
    """
    from ssld.curate.context import Work
    from ssld.curate.sets.images import ImageSet

    _check(config, stage)
    work = Work(config)
    if stage == "report":
        return _report(work)
    paths = {"gallery": config.gallery, "protected": config.protected, "labeled": config.labeled}
    sets = {
        name: ImageSet(name, list(given), config.shard_size)
        for name, given in paths.items()
        if given
    }
    scorer = _scorer(work, sets.get("labeled")) if config.has_teacher and stage != "index" else None
    excluded = _excluded(config) if stage in (None, "select") else set()
    with _open(work):
        _run(work, stage, sets, scorer, excluded)


def _run(
    work: Work,
    stage: str | None,
    sets: dict[str, ImageSet],
    scorer: Scorer | None,
    excluded: set[str],
) -> None:
    from ssld.curate import manifest
    from ssld.curate.near_duplicates import search as duplicates
    from ssld.curate.near_duplicates.projection import project
    from ssld.curate.sets import index

    if stage in (None, "duplicates"):
        project(work, sets, scorer)
    indexes = {name: index.build(work, images) for name, images in sets.items()}
    gallery, protected, labeled = indexes["gallery"], indexes["protected"], indexes.get("labeled")
    if stage == "index":
        return manifest.write_on_main(work, indexes, None, {}, ())
    scores, views = None, []
    if scorer:
        from ssld.curate.select.score import embed_protected, score

        scores = score(work, scorer, gallery)
        if stage == "score":
            return manifest.write_on_main(work, indexes, scorer, {}, ())
        views = embed_protected(work, scorer, protected)
    ready = duplicates.prepare(work, protected, scorer.key if scorer else None, views)
    examination = duplicates.Examination(work, gallery, protected, scores, ready)
    if stage == "duplicates":
        examination.examine(np.arange(len(gallery.images)))
        facts = _write_pairs(work, examination)[1]
        facts = {**manifest.examined(examination, labeled), **facts}
        return manifest.write_on_main(work, indexes, scorer, facts, ("pairs",))
    assert scorer and scores
    _select(work, indexes, examination, scores, scorer, excluded)
    if stage is None:
        from ssld.common.attempt import attempt

        attempt("report.html", lambda: _report(work))


def _check(config: CurateConfig, stage: str | None) -> None:
    if stage in (None, "score", "select") and not config.has_teacher:
        raise InputError(
            "teacher.arch is missing: name a timm classifier, or give teacher.checkpoint; without "
            "one `ssld curate duplicates` finds near-duplicates, but nothing can be selected"
        )
    if config.engine == "ray" and stage != "report":
        from ssld.curate.workers_ray import require_ray

        require_ray()
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"out {out} is a file: give a folder")
    if out.is_dir() and any(out.iterdir()) and not _is_curation(out):
        raise InputError(
            f"out {out} is not empty and not the folder of a curation: give another folder"
        )
    inside = inputs_inside(out, dataclasses.asdict(config), INPUTS) if stage != "report" else []
    if inside:
        raise InputError(
            f"out {out}: {inside[0][0]} {inside[0][1]} lies inside of it, where the tables of this "
            "curation are replaced; give another `out`, or move that"
        )
    if stage == "report" and not out.is_dir():
        raise InputError(f"out {out}: no such folder; give that of a curation")


def _is_curation(out: Path) -> bool:
    config = out / "config.yaml"
    if not config.is_file():
        return not any(path.name not in (TEMPORARY, LOCK) for path in out.iterdir())
    with contextlib.suppress(OSError, InputError):
        return set(read_object(config, "give another folder")) >= WRITTEN
    return False


@contextlib.contextmanager
def _open(work: Work) -> Iterator[None]:
    """The folder, the first thing that is written, for one command at a time.

    Raises:
        InputError: it cannot be made, or another command is at work in it.
    """
    from ssld.curate.manifest import settings

    with locked(work.out) if work.main else contextlib.nullcontext():
        if work.main:
            for left_by_a_kill in _unfinished(work.out):
                left_by_a_kill.unlink(missing_ok=True)
            text = yaml.safe_dump(settings(work), sort_keys=False)
            write_atomically(work.out / "config.yaml", text)
        work.processes.wait()
        yield


def _unfinished(out: Path) -> Iterator[Path]:
    """What `tables.write_whole` was writing when it was killed; elsewhere in `out` nothing of ours
    lies."""
    folders = [out / name for name in ("index", "scores", "work")]
    for path in [*out.iterdir(), *(path for folder in folders for path in folder.rglob("*"))]:
        if re.fullmatch(r"\..+\.(parquet|npy)\.\d+", path.name) and not path.is_dir():
            yield path


def _excluded(config: CurateConfig) -> set[str]:
    """Keys of all images of the sources, and lines of the text files, of select.exclude_keys.

    Raises:
        InputError: one cannot be opened.
    """
    from ssld.data.sources import key, open_source

    keys: set[str] = set()
    for path in config.select.exclude_keys:
        if path.endswith(".txt"):
            try:
                lines = Path(path).read_text(encoding="utf-8").split("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"select.exclude_keys {path}: cannot be read ({error})") from error
            keys |= {line.strip() for line in lines if line.strip()}
        else:
            source = open_source(path)
            keys |= {key(source.sample_id(i)) for i in range(len(source))}
    return keys


def _scorer(work: Work, labeled: ImageSet | None) -> Scorer:
    from ssld.curate.select.score import Scorer, verify

    scorer = Scorer(work, labeled)
    verify(work, scorer, labeled)
    return scorer


def _select(
    work: Work,
    indexes: dict[str, Index],
    examination: Examination,
    scores: Scores,
    scorer: Scorer,
    excluded: set[str],
) -> None:
    from ssld.curate import manifest, tables
    from ssld.curate.select.select import dropped_tables, select, selected_tables

    gallery, labeled = indexes["gallery"], indexes.get("labeled")
    outcome = select(work, examination, scores, labeled, scorer.num_classes, excluded)
    because, facts = _write_pairs(work, examination)
    if work.main:
        write = functools.partial(_write, work)
        write("inside", [outcome.inside.table()], tables.INSIDE)
        write("selected", selected_tables(gallery, outcome), tables.SELECTED)
        write("dropped", dropped_tables(gallery, scores, outcome, because), tables.DROPPED)
        facts |= manifest.selected(outcome, work.config.select.k)
        facts = {**manifest.examined(examination, labeled), **facts}
    manifest.write_on_main(work, indexes, scorer, facts, manifest.TABLES)
    kept = len(outcome.selection.row)
    work.say(f"{work.out}/selected.parquet: {kept:,} of {len(gallery.images):,} images")


def _write_pairs(work: Work, examination: Examination) -> tuple[dict[str, str], dict[str, Any]]:
    """Write pairs.parquet on the main process.

    Returns:
        location of a gallery image -> the protected image it is closest to, and facts.
    """
    from ssld.curate import manifest, tables

    closest: dict[str, tuple[tuple, str]] = {}
    hits: Counter[str] = Counter()

    def noted() -> Iterator[pa.Table]:
        for _, table in examination.pairs():
            for row in table.filter(table["verdict"].to_numpy() == "duplicate").to_pylist():
                evidence = (row["exact"] is not None, row["inliers"], row["ncc"] or 0)
                hits[row["protected"]] += 1
                best = closest.get(row["gallery"])
                if best is None or evidence > best[0]:
                    closest[row["gallery"]] = evidence, row["protected"]
            yield table

    if work.main:
        _write(work, "pairs", noted(), tables.PAIRS)
        work.say(
            f"{work.out}/pairs.parquet: {len(closest):,} gallery images are near-duplicates of "
            f"{len(hits):,} protected ones"
        )
    facts = {"warnings": manifest.warnings(examination, hits)}
    for line in facts["warnings"]:
        work.say(f"warning: {line}")
    return {name: protected for name, (_, protected) in closest.items()}, facts


def _write(work: Work, name: str, parts: Iterable[pa.Table], schema: pa.Schema) -> None:
    from ssld.curate.tables import write_table

    write_table(work.out / f"{name}.parquet", parts, schema)


def _report(work: Work) -> None:
    from ssld.curate.report.page import write_report
    from ssld.curate.sets.index import reader

    if work.main:
        write_report(work.out, reader(work.out))
        work.say(f"{work.out}/report.html")
