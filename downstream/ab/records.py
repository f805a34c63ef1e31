"""What a finished run says for an A/B: its score, its learning curve, and its record per image.

The score is that of the exported network. `held_out.npz` in the run folder is what that network
made of each held-out image: `ids` and, by task, `hits` (transfer), `confusion` (segmentation) or
what `downstream.detection.coco_protocol.bootstrap` reads (detection): of boxes, or of keypoints or
masks where these are what the detector finds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from downstream.ab.statistics import Point, Statistic
from downstream.detection.coco_protocol import bootstrap as average_precision
from downstream.detection.coco_protocol import how_often
from ssld.common.errors import InputError
from ssld.common.files import reading
from ssld.compare.seen_run import exported_metrics
from ssld.engine.per_image import HELD_OUT
from ssld.engine.run_folder import read_lines

PROBE = "probe.json"
TOLERANCE = 1e-4
"""Between the score of a run and that of its record, which are sums in another order."""
Arrays = Mapping[str, np.ndarray]
"""What `held_out.npz` holds."""


@dataclass(frozen=True)
class Measure:
    """What a task is judged by."""

    keys: tuple[str, ...]
    """Of the evaluations in metrics.jsonl: the first that a run has; a share, more is better."""
    statistic: Callable[[Arrays], Statistic]


@dataclass(frozen=True)
class Record:
    """Per image."""

    ids: tuple[str, ...]
    statistic: Statistic


@dataclass(frozen=True)
class Result:
    """Of one run."""

    score: float
    curve: list[Point]
    record: Record | None
    """None where the run kept none."""
    probe: Mapping[str, Mapping[str, float]]
    """{before, after: {knn, linear: share right}} of frozen features, where it was measured."""
    chosen: bool = False
    """Whether the held-out images chose which checkpoint was exported."""
    folder: Path | None = None
    """Of the run."""
    key: str | None = None
    """Of `Measure.keys`; None is the last."""


def read_result(folder: Path, task: str) -> Result:
    """Read a finished run.

    Raises:
        InputError: a file is missing or damaged; the record is not that of the exported network.
    """
    measure = MEASURES[task]
    with reading(folder, "remove it", OSError):
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        lines = read_lines(folder / "metrics.jsonl")
        metrics = exported_metrics(facts, lines)
        key = next((key for key in measure.keys if key in metrics), None)
        if key is None:
            raise InputError(
                f"{folder}: no evaluation of the exported network has {measure.keys[-1]!r}; are "
                "there labeled held-out images?"
            )
        score = metrics[key]
        return Result(
            score,
            curve=_curve(lines, key),
            record=_record(folder, measure, key, score),
            probe=_probe(folder, metrics),
            chosen=facts["exported"].get("metric", "last") != "last",
            folder=folder,
            key=key,
        )


def _curve(lines: list[dict[str, Any]], key: str) -> list[Point]:
    curve, seconds = [], 0.0
    for line in sorted(lines, key=lambda x: (x["step"], x["kind"] == "eval")):
        seconds += line["seconds"] if line["kind"] == "train" else 0.0
        if line["kind"] == "eval" and key in line:
            curve.append(Point(line["step"], seconds, line[key]))
    return curve


def _record(folder: Path, measure: Measure, key: str, score: float) -> Record | None:
    file = folder / HELD_OUT
    if not file.is_file() or math.isnan(score):
        return None
    with file.open("rb") as stream, np.load(stream) as opened:
        arrays = dict(opened)
    ids, statistic = arrays["ids"], measure.statistic(arrays)
    whole = float(statistic(np.arange(len(ids))[None])[0])
    if not abs(whole - score) <= TOLERANCE:
        raise InputError(
            f"{file}: its images make {key} {whole:.4f}, but the exported "
            f"network has {score:.4f}; remove {folder}"
        )
    return Record(tuple(map(str, ids.tolist())), statistic)


def _probe(folder: Path, evaluation: dict[str, Any]) -> dict[str, dict[str, float]]:
    file = folder / PROBE
    probe = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    after = {key: evaluation[key] for key in ("knn", "linear") if key in evaluation}
    return {**probe, **({"after": after} if after else {})}


def _top1(arrays: Arrays) -> Statistic:
    hits = arrays["hits"].astype(np.float64)  # [n]
    return lambda draws: hits[draws].mean(1)


def _miou(arrays: Arrays) -> Statistic:
    """The mean of `downstream.segmentation.confusion.class_iou` over the classes that occur, as
    there, on the summed matrices of each draw."""
    matrices = arrays["confusion"].astype(np.float64)  # [n, c, c]
    hits = matrices.diagonal(axis1=1, axis2=2)  # [n, c]
    union = matrices.sum(1) + matrices.sum(2) - hits

    def statistic(draws: np.ndarray) -> np.ndarray:
        times = how_often(draws, len(matrices)).astype(np.float64)  # [r, n]
        # Sums over a draw are products with how often each image is in it: [r, n] @ [n, c].
        whole = times @ union
        share = np.divide(times @ hits, whole, out=np.full_like(whole, np.nan), where=whole > 0)
        occurs = np.isfinite(share).sum(1)
        total = np.nansum(share, 1)
        return np.divide(total, occurs, out=np.full(len(draws), np.nan), where=occurs > 0)

    return statistic


MEASURES = {
    "transfer": Measure(("top1",), _top1),
    "segmentation": Measure(("miou",), _miou),
    "detection": Measure(
        ("keypoint_ap", "mask_ap", "ap"),
        lambda arrays: lambda draws: average_precision(arrays, draws),
    ),
}
