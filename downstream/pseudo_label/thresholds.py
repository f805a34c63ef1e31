"""Which predictions become annotations: those with at least a score, which is given, or such that
there are as many per image as human ones (Data Distillation, arXiv:1712.04440, sections 4, 6.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Threshold:
    """Of one class, or of all keypoints."""

    score: float | None
    """Least score of what is kept; None where nothing is."""
    predicted: int
    kept: int
    wanted: int | None
    """By the labeled set; None where no such set is known."""

    @property
    def remark(self) -> str | None:
        """What is to be said of a count that is not the one that was wanted."""
        if self.wanted is None or self.kept == self.wanted:
            return None
        if self.kept > self.wanted:
            return f"{self.kept - self.wanted} more than wanted have the score of the last one"
        return f"{self.wanted} are wanted, and {self.predicted} are predicted"


def wanted_count(labeled: int, units: int, generated_units: int) -> int:
    """How many there should be among `generated_units` images, if there are `labeled` in `units`
    of the labeled set: rounded half up, at least one where the labeled set has any."""
    if not labeled:
        return 0
    return max(1, (2 * labeled * generated_units + units) // (2 * units))


def threshold(scores: np.ndarray, wanted: int | None, asked: Literal["count"] | float) -> Threshold:
    """
    Args:
        scores: float32 [n], of all predictions of the class.
        wanted: how many the labeled set says; needed where `asked` is `count`.
        asked: count, or the least score.

    Returns:
        the threshold. With `count` it is the `wanted`-th best score: predictions that tie with it
        are kept, all of them; where there are fewer, the last one's.
    """
    if asked == "count":
        assert wanted is not None, "there is nothing to match"
        best = np.sort(scores)[::-1][:wanted]
        score = float(best[-1]) if len(best) else None
    else:
        score = float(asked)
    # Both are float32: a score of 0.3 as the network has it is not below 0.3.
    kept = 0 if score is None else int((scores >= np.float32(score)).sum())
    return Threshold(score, len(scores), kept, wanted)
