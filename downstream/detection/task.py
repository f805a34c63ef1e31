"""Detection as a task of the one loop (`ssld.engine`): a step's losses, and average precision on
held-out images. What the losses are is in the detectors' own files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from downstream.dense.drawing import draw_boxes, draw_instances, draw_keypoints
from downstream.dense.model import save
from downstream.dense.report import write_report
from downstream.dense.sources import Sources
from downstream.dense.task import AnnotatedTask, ids_of
from downstream.detection.batches import BoxBatch, BoxBatches
from downstream.detection.coco_protocol import similarity_of
from downstream.detection.config import BoxAugmentConfig, BoxTestConfig, DetectorConfig
from downstream.detection.data.boxes import BoxSource
from downstream.detection.data.transforms import EvalBoxView, TrainBoxView
from downstream.detection.heads.detector import pad_to_largest
from downstream.detection.model import DetectionModel
from downstream.detection.networks import DETECTORS, PREFIXES
from downstream.detection.report import by_class, by_keypoint, curves
from downstream.detection.score import DetectionScore, GroundTruth, score_of
from ssld.engine.per_image import write_held_out
from ssld.engine.start import Run

PREDICTIONS = "predictions.json"


class DetectionTask(AnnotatedTask[BoxBatch, DetectionModel, DetectionScore]):
    """Find boxes, or keypoints or masks in them.

    Args:
        sources: to train on and held out.
        seed: the run's.
    """

    def __init__(
        self,
        sources: Sources[BoxSource],
        augment: BoxAugmentConfig,
        test: BoxTestConfig,
        detector: DetectorConfig,
        seed: int,
    ) -> None:
        self.augment, self.test, self.detector = augment, test, detector
        self.joint = bool(sources.generated)
        view, human = TrainBoxView(augment, seed), len(sources.train)
        self.make_train = BoxBatches(sources.seen, view, human)
        self.make_held_out = BoxBatches(sources.val, EvalBoxView())
        finds = DETECTORS[detector.name].finds
        self.metric, self.names = f"{PREFIXES[finds]}ap", sources.val[0].class_names
        similarity = similarity_of(finds, sources.val[0].keypoints, test.oks_sigmas)
        self.ground_truth = GroundTruth(sources.val, similarity)

    def dense_losses(self, detector: Callable[..., Any], batch: BoxBatch) -> dict[str, Tensor]:
        """{term: float32 [b]}, 0 for an unreadable image, which is not shown to the detector."""
        kept = batch.weight.nonzero()[:, 0].tolist() or list(range(len(batch.ids)))
        targets = [batch.targets[i] for i in kept]
        # Views that are squares all have the size of the batch.
        same = self.augment.resize != "shorter"
        images = batch.images if same else pad_to_largest(batch.images)
        terms = detector(images[kept], batch.sizes[kept], targets)
        rows = torch.tensor(kept, device=batch.images.device)
        shapes = {name: tuple(loss.shape) for name, loss in terms.items()}
        assert set(shapes.values()) == {(len(kept),)}, f"a loss per image is wanted, not {shapes}"
        return {
            name: loss.new_zeros(len(batch.ids)).index_copy(0, rows, loss).float()
            for name, loss in terms.items()
        }

    def draw_view(self, batch: BoxBatch, i: int) -> tuple[np.ndarray, np.ndarray, set[int]]:
        """See `downstream/dense/training_views.py`."""
        height, width = batch.sizes[i].tolist()
        view, target = batch.images[i, :height, :width].numpy(), batch.targets[i]
        labels, drawn, keypoints = target["labels"].tolist(), view, self.ground_truth.keypoints
        if "masks" in target:
            drawn = draw_instances(drawn, target["masks"].numpy(), labels)
        drawn = draw_boxes(drawn, target["boxes"].numpy(), labels, self.names)
        if keypoints is not None and "keypoints" in target:
            drawn = draw_keypoints(drawn, target["keypoints"].numpy(), keypoints)
        return view, drawn, set(labels)

    def evaluate(self, detector: DetectionModel, batches: Iterable[BoxBatch]) -> DetectionScore:
        """What the detector finds in held-out images."""
        return score_of(detector, batches, self.ground_truth, self.augment, self.test)

    def export(self, network: DetectionModel, folder: Path, step: int) -> str:
        """Write the detector; returns the sha256 of its weights."""
        head = asdict(self.detector)
        view = {**asdict(self.augment), "test": asdict(self.test)}
        known = network.keypoints and asdict(network.keypoints)
        return save(network, folder, step, task="detection", head=head, view=view, keypoints=known)

    def keep(self, run: Run, score: DetectionScore, step: int, best: bool) -> None:
        """The drawn images, and of the exported network what it found in each image."""
        score.write_pictures(run, step)
        if best:
            detections = score.counts
            ids = ids_of(run, detections.images)
            write_held_out(run.folder.path, ids, **detections.matches())
            detections.save(run.folder.path / PREDICTIONS)

    def write_report(self, run: Run, network: DetectionModel, score: DetectionScore | None) -> None:
        """Write report.html."""
        counts = (score or DetectionScore(self.ground_truth)).counts
        tables = []
        if score and counts.similarity.of == "keypoints":
            names = [] if self.ground_truth.keypoints is None else self.ground_truth.keypoints.names
            tables.append(by_keypoint(counts, names, self.test.oks_sigmas))
        write_report(run, curves(counts), by_class(counts) if score else ([], []), tables=tables)
