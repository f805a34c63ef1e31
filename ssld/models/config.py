"""Settings of the student and of teachers. Imports neither torch nor timm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ssld.common.settings import (
    IN_SHORT_HELP,
    PositiveInt,
    Precision,
    Settings,
    require,
    require_path,
)

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class StudentConfig(Settings, section="student"):
    """The network that is trained."""

    arch: str | None = field(default=None, metadata=IN_SHORT_HELP)
    """timm name, `hf-hub:org/name[@rev]` or `local-dir:folder`."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `timm.create_model`."""
    pretrained: bool = field(default=False, metadata=IN_SHORT_HELP)
    """Start from the weights that timm or the hub publishes for `arch`."""
    checkpoint: str | None = None
    """Start from these weights: a safetensors file, what torch.save wrote, an exported model folder
    or a run folder."""
    num_classes: int | None = None
    """Number of classes; by default the teacher's, or the labeled set's in supervised training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_path(self.checkpoint, "student.checkpoint", "student.arch, with student.pretrained")


@dataclass(frozen=True)
class TeacherConfig(Settings, section="teacher"):
    """The frozen network whose predictions are the targets."""

    arch: str | None = field(default=None, metadata=IN_SHORT_HELP)
    """timm name, `hf-hub:` or `local-dir:` id; a run folder as `checkpoint` knows its own."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `timm.create_model`."""
    checkpoint: str | None = field(default=None, metadata=IN_SHORT_HELP)
    """A safetensors file, what torch.save wrote (`.pth`, `.pt`, `.ckpt`), an exported model folder
    or a run folder; by default timm's weights."""
    input_size: int | None = None
    """Side in px that the teacher sees; by default `args.img_size`, else what its weights' metadata
    says."""
    mean: Triple | None = None
    """Mean of its normalisation in [0, 1]; by default what its weights' metadata says."""
    std: Triple | None = None
    """Deviation of its normalisation in [0, 1]; by default what its weights' metadata says."""
    dtype: Precision | None = None
    """Number format of its forward pass; by default the run's `precision`."""
    batch_norm: Literal["eval", "batch"] = "eval"
    """eval: running statistics. batch: each batch's own, as the reference implementation does."""
    micro_batch: PositiveInt | None = None
    """Images per forward pass, to save memory; by default the whole batch, on a CPU 8."""
    verify: bool = True
    """Refuse to start when its top-1 on labeled images is near chance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_path(self.checkpoint, "teacher.checkpoint", "teacher.arch")
        require(
            self.micro_batch is None or self.batch_norm == "eval",
            "teacher.micro_batch changes the statistics of `teacher.batch_norm: batch`: "
            "set one of them only",
        )
