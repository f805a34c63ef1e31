"""Run folders -> the tidy table: results.csv and results.parquet, a row per trial and stage.

The columns are those of the axes, then `COLUMNS`. Shares are between 0 and 1. All but the last two
columns, which a clock decides, are the same bytes whatever happened on the way.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssld.ablate.grid import Ablation, Axis, Trial, Value
from ssld.ablate.state import Row
from ssld.common.files import reading, write_atomically
from ssld.common.metrics import RECORDED
from ssld.common.packages import is_installed, say_left_out
from ssld.compare.seen_run import exported_metrics
from ssld.engine.run_folder import read_lines

COLUMNS = {
    "stage": "string",
    "status": "string",  # done, failed or pending
    **dict.fromkeys(RECORDED, "double"),  # on held-out images at the exported step
    "exported_step": "int64",
    "steps": "int64",
    "epochs": "double",
    "images": "int64",  # to train on
    "held_out_images": "int64",
    "held_out_labels": "int64",  # images that top-1 is a share of
    "teacher_top1": "double",
    "resolution": "int64",  # px, as the stage `fix` chose it
    "run": "string",  # folder, seen from the table
    "train_seconds": "double",
    "images_per_second": "double",  # median of the lines of metrics.jsonl
}


def read_trial(ablation: Ablation, trial: Trial) -> list[Row]:
    """What its finished stages say, by the names of `COLUMNS`; one row each.

    Raises:
        InputError: a file is damaged.
    """
    folder = ablation.folder(trial)
    rows = []
    for stage in ablation.stages:
        with reading(folder / stage, "remove it", OSError):
            row = read_stage(folder / stage)
        if row:
            run = (folder / stage).relative_to(ablation.out).as_posix()
            rows.append({"stage": stage, "status": "done", **row, "run": run})
    return rows


def read_stage(folder: Path) -> Row:
    """What the run folder of a stage says; nothing where it is not finished."""
    file = folder / "run.json"
    facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not facts.get("resolution" if folder.name == "fix" else "exported"):
        return {}
    lines = read_lines(folder / "metrics.jsonl")
    train = [line for line in lines if line["kind"] == "train"]
    metrics, teacher = exported_metrics(facts, lines), facts.get("teacher_top1")
    return {
        **{key: metrics.get(key) for key in RECORDED},
        "exported_step": facts["exported"]["step"],
        "steps": facts.get("steps"),
        "epochs": lines[-1]["epoch"] if lines else None,
        "images": sum((facts.get("images") or {}).values()) or None,
        "held_out_images": _whole(metrics.get("images")),
        "held_out_labels": _whole(metrics.get("labeled")),
        "teacher_top1": teacher["hits"] / teacher["images"] if teacher else None,
        "resolution": (facts.get("resolution") or {}).get("chosen"),
        "train_seconds": round(sum(line["seconds"] for line in train), 3),
        "images_per_second": statistics.median(x["images_per_second"] for x in train)
        if train
        else None,
    }


def _whole(count: float | None) -> int | None:
    return None if count is None else round(count)


def tidy(
    ablation: Ablation, results: Mapping[str, Sequence[Row]], failed: Mapping[str, str]
) -> list[Row]:
    """A row for each trial and stage.

    Args:
        results: rows of `read_trial`, by the trial's name.
        failed: why, by the trial's name.
    """
    rows = []
    for trial in ablation.trials:
        known = {row["stage"]: row for row in results.get(trial.name, ())}
        for stage in ablation.stages:
            status = "failed" if trial.name in failed else "pending"
            row = dict.fromkeys(COLUMNS) | {"stage": stage, "status": status}
            row |= known.get(stage, {})
            places = {column(axis): plain(axis, trial.values[axis.name]) for axis in ablation.axes}
            rows.append(places | {key: row[key] for key in COLUMNS})
    return rows


def column(axis: Axis) -> str:
    """Of an axis; `epochs`, say, is also what a stage took."""
    return f"grid.{axis.name}" if axis.name in COLUMNS else axis.name


def plain(axis: Axis, one: Value) -> Any:
    """A number on an axis of numbers, else text."""
    if not axis.numeric:
        return one.text
    return one.value if axis.whole else float(one.value)


def kinds(ablation: Ablation) -> dict[str, str]:
    """The type of each column, as pyarrow calls it, in their order."""
    places = {
        column(axis): ("int64" if axis.whole else "double") if axis.numeric else "string"
        for axis in ablation.axes
    }
    return places | COLUMNS


def write_results(ablation: Ablation, rows: Sequence[Row]) -> None:
    """Both files, each in one step; results.csv alone where pyarrow is not installed."""
    columns = kinds(ablation)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(ablation.out / "results.csv", text.getvalue())
    if is_installed("pyarrow"):
        write_atomically(ablation.out / "results.parquet", parquet(columns, rows))
    else:
        # a table of before would disagree with results.csv
        (ablation.out / "results.parquet").unlink(missing_ok=True)
        say_left_out("pyarrow", "results.parquet is not written, results.csv has the same rows")


def parquet(columns: Mapping[str, str], rows: Sequence[Row]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema), table)
    return table.getvalue()
