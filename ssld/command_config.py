"""The settings of the commands that look at runs and models: evaluate, bench, plan, compare."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ssld.config import DistillConfig, Triple
from ssld.loop_config import Precision, require, require_path


@dataclass(frozen=True)
class EvaluateConfig:
    """`ssld evaluate`: top-1 and top-5 with 95 % intervals of one classifier on labeled images."""

    model: str
    """timm name, `hf-hub:` or `local-dir:` id, run folder or exported model folder."""
    data: str | list[str]
    """Labeled sources."""
    checkpoint: str | None = None
    """Safetensors weights for a timm name."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `timm.create_model`."""
    input_size: int | None = None
    """Side in px; by default what the weights' metadata says."""
    mean: Triple | None = None
    """Mean of the normalisation; by default what the weights' metadata says."""
    std: Triple | None = None
    """Deviation of the normalisation; by default what the weights' metadata says."""
    batch_size: int = 256
    """Images per forward pass."""
    workers: int = 4
    """Loader processes."""
    precision: Precision = "fp32"
    """Number format of the forward pass."""
    max_unreadable: float = 0.1
    """Stop when more than this share of a source's files cannot be read."""
    out: str | None = None
    """Also write the result to this JSON file."""

    def __post_init__(self) -> None:
        sources = [self.data] if isinstance(self.data, str) else list(self.data)
        object.__setattr__(self, "data", sources)
        require_path(self.checkpoint, "checkpoint", "model")
        require(bool(sources), "data is empty: name a labeled source")
        require(self.batch_size > 0, f"batch_size is {self.batch_size}: give a number above 0")
        require(self.workers >= 0, f"workers is {self.workers}: give 0 or more")


@dataclass(frozen=True)
class BenchConfig(DistillConfig):
    """`ssld bench`: how fast the parts of a distillation are, alone and together.

    Takes the settings of `ssld distill`; writes nothing into `out`.
    """

    seconds: float = 10.0
    """Length of each measurement."""
    json: str | None = None
    """Also write the result to this file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.seconds > 0, f"seconds is {self.seconds}: give a number above 0")


@dataclass(frozen=True)
class PlanConfig(BenchConfig):
    """`ssld plan`: is everything right, and what will it cost?

    Takes the settings of `ssld distill`, or a recipe as its first word, of which it plans the first
    stage and checks the classes of the others; writes nothing into `out`. Exit code 1 when it finds
    a problem.
    """

    price_per_hour: float | None = None
    """What an hour of all devices costs, in any currency."""
    images: int = 2000
    """Labeled images, at most, on which the teacher is tried."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.images > 0, f"images is {self.images}: give a number above 0")
        require(
            self.price_per_hour is None or self.price_per_hour >= 0,
            f"price_per_hour is {self.price_per_hour}: give 0 or more",
        )


@dataclass(frozen=True)
class CompareConfig:
    """`ssld compare A B ...`: config differences, one table and one overlay of curves.

    The runs may still be going."""

    runs: list[str] = field(default_factory=list)
    """Run folders; the words before the first option are taken for them."""
    out: str = "compare.html"
    """The page that is written."""
    json: str | None = None
    """Also write differences and results to this file."""

    def __post_init__(self) -> None:
        require(
            len(self.runs) > 1,
            f"runs is {self.runs}: give at least two run folders, before any option",
        )
        require(self.out != self.json, f"out and json are both {self.out}: name two files")
