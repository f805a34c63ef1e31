"""How far off a share of images may be, and how far it is from chance."""

from __future__ import annotations

import math


def wilson(hits: float, count: float, z: float = 1.959964) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927); (0, 1) when nothing was counted."""
    if count == 0:
        return 0.0, 1.0
    share, z2 = hits / count, z * z / count
    centre = (share + z2 / 2) / (1 + z2)
    half = z * math.sqrt(share * (1 - share) / count + z2 / (4 * count)) / (1 + z2)
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def near_chance(low: float, num_classes: int) -> bool:
    """Whether the lower end of a top-1's interval lies in the first 5 % of the way to 1."""
    chance = 1 / num_classes
    return low <= chance + 0.05 * (1 - chance)


def too_few(count: int, num_classes: int) -> bool:
    """Whether a teacher that is right on all of `count` labeled images would seem near chance."""
    return near_chance(wilson(count, count)[0], num_classes)
