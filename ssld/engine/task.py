"""What a run is for: the losses of a step, an evaluation, and what is made of it.

A task subclasses `Task`; see `ssld/distill/distill.py` or `downstream/detection/task.py`. The loop
(`ssld/engine/loop.py`) does everything else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from accelerate import Accelerator
from torch import Tensor, nn

from ssld.data.loading import AnyBatch
from ssld.engine.start import Run
from ssld.models.classifier import ImageModel

Blame = Callable[[Tensor, list[str]], tuple[str, str] | None]
"""(weight [b], 0 for what could not be read; ids) -> what is wrong and what to do, or None."""


class Score(Protocol):
    """What an evaluation found; see `ssld.health.classification_metrics.ClassificationMetrics`."""

    def reduce(self, accelerator: Accelerator, cut_short: bool) -> bool:
        """Add up over all processes; False when it was cut short on any of them."""
        ...

    def metrics(self) -> dict[str, float]: ...


R = TypeVar("R", bound=Run)
B = TypeVar("B", bound=AnyBatch)
N = TypeVar("N", bound=ImageModel)
S = TypeVar("S", bound=Score)


class Task(ABC, Generic[R, B, N, S]):
    """One subject that networks are trained for: its run, batch, network and score are types of
    its own."""

    exported: str
    """Name of the folder in the run folder that the best network is exported to."""

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        """{section of a step's time: module} of what takes part in a step and is not trained. It
        goes to the device, and is compiled and laid out as the student is; it is in no checkpoint.
        """
        return {}

    @property
    def auxiliary(self) -> Mapping[str, nn.Module]:
        """{name: module} of what is trained besides the student and not exported, such as the
        projection of a feature loss, or holds state, such as a moving average of losses in a
        buffer. It goes to the device, into the optimizer, into the average and into checkpoints.

        `losses` calls the very modules that are named here. After each step buffers of numbers are
        averaged over the processes.
        """
        return {}

    def averaged(self, average: N, /) -> None:
        """Called once where the run keeps a moving average of the student (`ema`), before the first
        step and before a checkpoint is loaded: for losses to which the average is a teacher. It is
        updated in place after each step, buffers too, and is in eval mode."""

    @abstractmethod
    def train_batches(self, run: R, first_step: int, last_step: int) -> Iterator[B]:
        """This process's batches of steps [first_step, last_step)."""

    @abstractmethod
    def held_out(self, run: R) -> Iterator[B]:
        """This process's held-out images, each once over all processes."""

    @abstractmethod
    def losses(self, student: Callable[..., Any], batch: B, /) -> dict[str, Tensor]:
        """{term: float32 [b]}; their sum is what is minimised, see `weights`."""

    def weights(self, batch: B, losses: Mapping[str, Tensor]) -> Tensor:
        """By what the losses of each image are multiplied in what is minimised, float32 [b]; 0 for
        an unreadable one. Called once after each call of `losses`, with what that returned."""
        return batch.weight

    def logged(self) -> Mapping[str, Tensor]:
        """{key: number, []} that a line of metrics.jsonl has besides, the same on all processes; a
        key of what losses are multiplied by begins with `factor_`."""
        return {}

    def groups(self, batch: B) -> Mapping[str, Tensor]:
        """{name: bool [b]} of kinds of images whose losses are logged on their own, as `loss_NAME`
        and without `weights`; the same names for all batches of a run."""
        return {}

    def blame(self) -> Blame | None:
        """Of the last forward pass: whom to blame if a loss of it is not finite. Called at every
        step, so it must not wait for the device."""
        return None

    @abstractmethod
    def evaluate(self, student: N, batches: Iterable[B], /) -> S:
        """What the network makes of held-out images, on this process."""

    @abstractmethod
    def monitor(self, run: R) -> str:
        """The metric that decides which checkpoint is the best, or last."""

    def further_metrics(self, run: R, network: N, step: int) -> dict[str, float]:
        """Metrics that take more than the score, of the network that is exported."""
        return {}

    @abstractmethod
    def noted(self, network: N, metrics: Mapping[str, Any], metric: str) -> dict[str, Any]:
        """What is kept of an evaluation to compare others with it (`ssld.common.metrics.rank`), as
        JSON holds it; by the metrics that `Score` has, as all processes must agree."""

    @abstractmethod
    def verdict(
        self,
        run: R,
        network: N,
        metrics: dict[str, float],
        *,
        step: int,
        lr: float,
        initial: dict[str, Tensor],
    ) -> str:
        """How it goes, in a sentence.

        Args:
            network: as it is trained.
            metrics: of this evaluation.
            lr: the coming learning rate.
            initial: the network's parameters before the first step, on the CPU.
        """

    @abstractmethod
    def export(self, network: N, folder: Path, step: int) -> str:
        """Write the network as a user loads it; returns the sha256 of its weights."""

    def keep(self, run: R, score: S, step: int, best: bool) -> None:
        """Write what an evaluation found beyond its metrics.

        Args:
            best: it is of the network that is exported.
        """

    @abstractmethod
    def write_report(self, run: R, network: N, score: S | None) -> None:
        """Write report.html."""
