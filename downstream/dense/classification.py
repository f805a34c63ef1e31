"""Joint training with a classification set: Zoph et al. 2020 (arXiv:2006.06882), section 5.

    L = L_dense + w L_classes        (appendix H; w is .5, or .2 together with self-training)

Besides its annotated images each forward pass sees labeled ones, in the same call of the network: a
linear classifier on the backbone's last map, averaged over places, learns their classes by
cross-entropy. The paper says no more of it. Batch norm takes the statistics of the labeled images
for them, and its running statistics, by which the network is evaluated, stay those of annotated
images. Views are those of `ssld supervised`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from downstream.dense.config import DownstreamConfig
from downstream.dense.model import DenseModel
from ssld.common.errors import InputError
from ssld.data.config import AugmentConfig
from ssld.data.labels import class_names, index_for
from ssld.data.loading import AnyBatch, Batch, Maker, ViewBatches
from ssld.data.sampling import Beside, Sampler
from ssld.data.source import Source
from ssld.data.sources import open_source
from ssld.data.transforms import TrainView
from ssld.data.unreadable import Entry
from ssld.data.workers import Rows
from ssld.engine.start import Run

TERM = "classes"
"""Of the losses, and the group of the images that have it."""


@dataclass(frozen=True)
class JointBatch(AnyBatch):
    """One forward pass of one process: annotated images, then labeled ones."""

    dense: Any
    """Batch of b annotated images."""
    classified: Batch
    """Of c labeled images."""
    weight: Tensor
    """float32 [b + c]."""
    ids: list[str]
    unreadable: list[Entry]

    @property
    def labeled(self) -> Tensor:
        """bool [b + c]: which images are labeled ones."""
        return torch.arange(len(self.ids), device=self.weight.device) >= len(self.dense.ids)


class JointBatches:
    """Makes the batch of annotated and labeled images that rows ask for, the latter last.

    Args:
        dense, classified: make the batches of each kind; sources of the second are numbered after
            those of the first.
    """

    def __init__(self, dense: Maker[Any], classified: ViewBatches) -> None:
        self.dense, self.classified = dense, classified

    @property
    def sources(self) -> Sequence[Any]:
        return [*self.dense.sources, *self.classified.sources]

    def __call__(self, rows: Rows) -> JointBatch:
        first = len(self.dense.sources)
        labeled = rows[:, 0] >= first
        dense, classified = (
            self.dense(rows[~labeled]),
            self.classified(rows[labeled] - [first, 0, 0, 0]),
        )
        failed = [entry._replace(source=entry.source + first) for entry in classified.unreadable]
        return JointBatch(
            dense,
            classified,
            torch.cat([dense.weight, classified.weight]),
            dense.ids + classified.ids,
            dense.unreadable + failed,
        )


class Classes:
    """A set of labeled images, and the classifier that learns their classes on a backbone.

    Args:
        names: of the classes; None where they are numbers.
        batch_size: labeled images of a step over all processes.
        weight: of their loss.
        features: channels of the backbone's last map.
    """

    def __init__(
        self,
        sources: list[Source],
        count: int,
        names: list[str] | None,
        view: TrainView,
        *,
        batch_size: int,
        weight: float,
        features: int,
    ) -> None:
        self.sources, self.view, self.batch_size, self.weight = sources, view, batch_size, weight
        self.num_classes, self.label_names = count, names
        self.index = index_for(sources, self, "classifier")
        self.head = nn.Linear(features, count)

    def train_batches(
        self, run: Run, make: Maker[Any], first_step: int, last_step: int
    ) -> Iterator[JointBatch]:
        """This process's batches of steps [first_step, last_step), whose annotated images are those
        that a run without labeled ones sees."""
        config, labeled = run.config, Sampler(list(map(len, self.sources)), None, run.config.seed)
        passes = (config.batch_size // config.accumulate, self.batch_size // config.accumulate)
        return run.train_batches(
            JointBatches(make, ViewBatches(self.sources, self.view, self.index)),
            first_step,
            last_step,
            order=Beside(run.sampler, labeled, sources=len(make.sources), sizes=passes),
            batch_size=config.batch_size + self.batch_size,
        )

    def losses(
        self,
        dense: Callable[..., dict[str, Tensor]],
        network: Callable[..., Any],
        batch: JointBatch,
    ) -> dict[str, Tensor]:
        """{term: float32 [b + c]}: those of annotated images, 0 for labeled ones, and TERM.

        Args:
            dense: (network, batch) -> {term: float32 [b]}, which calls the network once.
            network: gives besides its own what the classifier is to see, with `labeled`.
        """
        features: list[Tensor] = []

        def once(*inputs: Any) -> Any:
            output, pooled = network(*inputs, labeled=batch.classified.images)
            features.append(pooled)
            return output

        terms = dense(once, batch.dense)
        logits = self.head(features[0]).float()  # [c, classes]
        of_classes = F.cross_entropy(logits, batch.classified.labels, reduction="none")  # [c]
        annotated, labeled = len(batch.dense.ids), len(batch.classified.ids)
        padded = {name: F.pad(loss, (0, labeled)) for name, loss in terms.items()}
        return {**padded, TERM: F.pad(of_classes, (annotated, 0))}

    def weights(self, dense: Tensor, batch: JointBatch) -> Tensor:
        """float32 [b + c], so that the mean over all images is L above.

        Args:
            dense: of annotated images, [b].
        """
        whole, labeled = len(batch.ids), batch.classified.weight
        shares = dense * whole / len(dense), labeled * (self.weight * whole / len(labeled))
        return torch.cat(shares)


def open_classes(config: DownstreamConfig, network: DenseModel) -> Classes | None:
    """What `classification` says, None where it names no source.

    Raises:
        InputError: a source that cannot be opened, or has an image without label; labels of several
            sources that do not fit.
    """
    section, backbone = config.classification, network.backbone
    if not section.train:
        return None
    sources = [_open(path) for path in section.train]
    names = class_names(sources)
    return Classes(
        sources,
        len(names) if names else 1 + max(_largest(source) for source in sources),
        names,
        TrainView(AugmentConfig(), section.size or backbone.input_size, config.seed),
        batch_size=config.labeled_batch_size,
        weight=section.weight,
        features=backbone.channels[-1],
    )


def _open(path: str) -> Source:
    try:
        source = open_source(path)
    except InputError as error:
        raise InputError(f"classification.train: {error}") from error
    missing = len(source) - int(source.labeled().sum())
    if missing:
        raise InputError(
            f"classification.train: {missing:,} of the {len(source):,} images of {path} have no "
            "label; give one subfolder per class, or a manifest or shards with labels"
        )
    return source


def _largest(source: Source) -> int:
    """The largest label of a source whose labels are numbers, maybe as text."""
    try:
        return max(int(source.label(i) or 0) for i in range(len(source)))
    except ValueError as error:
        raise InputError(
            f"classification.train: labels of {source.path} are neither names of classes that it "
            f"states nor numbers ({error})"
        ) from error
