"""What the keypoints of a set are: their names, which change places in a mirror, which are joined
by a line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Keypoints:
    """The k keypoints of every object of a set."""

    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...] = ()
    """Numbers of those that change places in a mirror, such as a left and a right eye."""
    skeleton: tuple[tuple[int, int], ...] = ()
    """Numbers of those that are joined by a line when they are drawn."""
