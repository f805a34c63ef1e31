"""What detection and segmentation share as tasks of the one loop (`ssld.engine.task.Task`)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn import functional as F

from downstream.dense.balance import Balance
from downstream.dense.classification import TERM, Classes, JointBatch
from downstream.dense.config import DownstreamConfig
from downstream.dense.drawing import Legend, image_grid, with_legend
from downstream.dense.model import FOLDER
from downstream.dense.report import write_picture
from ssld.common.metrics import METRICS, ONE_VIEW
from ssld.data.loading import Maker
from ssld.engine.start import Run
from ssld.engine.task import B, N, S, Task

DRAWN_IMAGES = 16
"""Held-out images that are drawn at every evaluation."""
JUDGED_AFTER = 1 / 3
"""Share of a run after which a score of 0 is a symptom."""


def drawn_numbers(images: int) -> list[int]:
    """Which of so many held-out images are drawn: `DRAWN_IMAGES`, evenly spread."""
    return sorted({i * images // DRAWN_IMAGES for i in range(DRAWN_IMAGES)}) if images else []


def verdict(
    metric: str, metrics: Mapping[str, float], before: Sequence[Mapping[str, Any]], share: float
) -> str:
    """How it goes, in a sentence.

    Args:
        metrics: of this evaluation.
        before: the lines of the earlier ones.
        share: of the run that is done.
    """
    if metric not in metrics:
        return "no verdict: no held-out image has anything to be found"
    value, name = metrics[metric], METRICS[metric].label
    done = "finished, " if share >= 1 else ""
    if metrics.get("classes", 2) < 2:
        return (
            f"no verdict: held-out pixels are of one class alone, so that a {name} of {value:.4f} "
            "says nothing; hold out images of the other classes, too"
        )
    if value < 1e-3 and share >= JUDGED_AFTER:
        return (
            f"{done}not learning: {name} is {value:.4f} after {share:.0%} of the run. Likely "
            "causes: far too few steps, classes of data.train and data.val that mean different "
            "things, annotations that do not fit their images (look at the pictures), a learning "
            "rate that is too high or too low"
        )
    earlier = [(line[metric], line["step"]) for line in before if metric in line]
    if not earlier:
        return f"{done}{name} {value:.4f}, the first evaluation"
    best, step = max(earlier)
    if value >= best:
        return f"{done}{name} {value:.4f}, the best so far (before: {best:.4f})"
    return f"{done}{name} {value:.4f}, below the best, {best:.4f} at step {step:,}"


class Counts(Protocol):
    """What is counted of each held-out image; see `detection/average_precision.py` and
    `segmentation/confusion.py`."""

    def reduce(self, accelerator: Accelerator, cut_short: bool) -> bool: ...

    def metrics(self) -> dict[str, float]: ...


C = TypeVar("C", bound=Counts)


def with_one_view(counts: Counts, one_view: Counts | None) -> dict[str, float]:
    """Metrics of what is said of images that are seen in several views, and under the same key and
    `ONE_VIEW` of what is said in one view alone."""
    metrics = counts.metrics()
    alone = one_view.metrics() if one_view is not None else {}
    return {**metrics, **{key + ONE_VIEW: x for key, x in alone.items() if key != "images"}}


class AnnotatedScore(Generic[C]):
    """What an evaluation counts, and the images that are drawn.

    Args:
        images: number of held-out images.
        legend: of all classes.
        note: how their predictions were chosen.
    """

    def __init__(self, counts: C, images: int, legend: Legend, note: str = "") -> None:
        self.counts, self.legend = counts, legend
        self.note = f"left: annotated, right: found{note}"
        self.wanted = set(drawn_numbers(images))
        self.drawn: dict[int, tuple[np.ndarray, np.ndarray, set[int]]] = {}
        """{image: ground truth and prediction drawn on it, uint8 [h, w, 3] each, and the numbers of
        the classes that are to be seen}."""
        self.written = False

    def reduce(self, accelerator: Accelerator, cut_short: bool) -> bool:
        """Collect the images of all processes; False when it was cut short on any of them."""
        if accelerator.num_processes > 1:
            self.drawn = dict(gather_object(list(self.drawn.items())))
        return self.counts.reduce(accelerator, cut_short)

    def metrics(self) -> dict[str, float]:
        """See `counts`."""
        return self.counts.metrics()

    def write_pictures(self, run: Run, step: int) -> None:
        """Keep the drawn images as one picture in the run folder, once."""
        if self.drawn and not self.written:
            self.written = True
            drawn = [self.drawn[number] for number in sorted(self.drawn)]
            seen = sorted(set().union(*(classes for *_, classes in drawn)))
            entries = [self.legend[i] for i in seen]
            grid = image_grid([(left, right) for left, right, _ in drawn])
            write_picture(run, step, lambda: with_legend(grid, entries, self.note))


class AnnotatedTask(Task[Run, B, N, S]):
    """The part of a task that does not depend on what is to be found in images."""

    exported = FOLDER
    metric: str
    """What decides where `checkpoint.best` says nothing or `last`."""
    joint: bool
    """Whether some of the annotations are generated."""
    make_train: Maker[B]
    make_held_out: Maker[B]
    balance: Balance | None = None
    classes: Classes | None = None

    def also(self, config: DownstreamConfig, classes: Classes | None) -> Self:
        """The same task, with generated annotations weighed as `balance` says, and beside labeled
        images."""
        alpha, self.classes = config.balance.alpha, classes
        if alpha is not None:
            share = config.data.generated_share
            decay = config.balance.decay
            self.balance = Balance(alpha, decay, share=share, passes=config.accumulate)
        return self

    @property
    def auxiliary(self) -> Mapping[str, nn.Module]:
        """The moving averages of losses, and the classifier of labeled images."""
        modules = {"balance": self.balance, "classes": self.classes and self.classes.head}
        return {name: module for name, module in modules.items() if module is not None}

    def train_batches(self, run: Run, first_step: int, last_step: int) -> Iterator[Any]:
        """This process's batches of steps [first_step, last_step): B, or JointBatch."""
        if self.classes is not None:
            return self.classes.train_batches(run, self.make_train, first_step, last_step)
        return run.train_batches(self.make_train, first_step, last_step)

    def losses(self, network: Callable[..., Any], batch: Any) -> dict[str, Tensor]:
        """{term: float32 [b]} of all images of a batch, labeled ones included."""
        if isinstance(batch, JointBatch):
            assert self.classes is not None
            return self.classes.losses(self.dense_losses, network, batch)
        return self.dense_losses(network, batch)

    @abstractmethod
    def dense_losses(self, network: Callable[..., Any], batch: B) -> dict[str, Tensor]:
        """{term: float32 [b]} of annotated images, 0 for an unreadable one. Calls the network once.

        Args:
            network: the model, or what else gives as it does.
        """

    def weights(self, batch: Any, losses: Mapping[str, Tensor]) -> Tensor:
        """See `Balance` and `Classes`."""
        joint = isinstance(batch, JointBatch)
        dense = batch.dense if joint else batch
        weights: Tensor = dense.weight  # [b]
        if self.balance is not None:
            loss = torch.stack(list(losses.values())).sum(0)[: len(weights)]
            weights = self.balance(loss, weights, dense.generated)
        if not joint:
            return weights
        assert self.classes is not None
        return self.classes.weights(weights, batch)

    def logged(self) -> Mapping[str, Tensor]:
        """What a generated annotation's loss is multiplied by, besides alpha."""
        return {} if self.balance is None else {"factor_generated": self.balance.factor}

    def groups(self, batch: Any) -> Mapping[str, Tensor]:
        """Images with human and with generated annotations, where there are both, and labeled
        ones."""
        if isinstance(batch, JointBatch):
            labeled = batch.labeled
            more = len(batch.classified.ids)
            kinds = {name: F.pad(x, (0, more)) for name, x in self.groups(batch.dense).items()}
            return {**kinds, TERM: labeled}
        if not self.joint:
            return {}
        generated: Tensor = batch.generated
        return {"human": ~generated, "generated": generated}

    def held_out(self, run: Run) -> Iterator[B]:
        """This process's held-out images, each once over all processes."""
        # One by one: what is found in an image must not depend on the size to which others in its
        # batch are padded, nor on which process it falls to.
        return run.eval_batches(self.make_held_out, "evaluate", batch_size=1)

    def monitor(self, run: Run) -> str:
        """The metric that decides which checkpoint is the best, or last."""
        return run.config.checkpoint.best or self.metric  # type: ignore[attr-defined]

    def noted(self, network: Any, metrics: Mapping[str, Any], metric: str) -> dict[str, Any]:
        """What is compared of an evaluation: its value, as a score of 0 is behind all others."""
        return {"metric": metric, "value": metrics[metric], "symptoms": []}

    def verdict(
        self,
        run: Run,
        network: Any,
        metrics: dict[str, float],
        *,
        step: int,
        lr: float,
        initial: Any,
    ) -> str:
        """How it goes, in a sentence."""
        best = self.monitor(run)
        before = run.folder.history.evaluations()
        metric = self.metric if best == "last" else best
        return verdict(metric, metrics, before, step / run.total_steps)


def ids_of(run: Run, numbers: np.ndarray) -> list[str]:
    """Ids of held-out images by their numbers."""
    ids = [source.sample_id(i) for source in run.val for i in range(len(source))]
    return [ids[i] for i in numbers]
