"""What a stage of self-training takes over from the one before it.

This file imports neither torch nor timm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ssld.common.settings import flat, under

INSTEAD = (("epochs", "steps"), ("schedule.milestones", "schedule.milestone_shares"))
"""Settings of which one takes the other's place."""
DECIDED = ("out", "resume", "overwrite", "allow_changes")
"""What no stage says itself."""


def inherited(settings: dict[str, Any]) -> dict[str, Any]:
    """What another stage takes over."""
    return {key: value for key, value in settings.items() if key not in DECIDED}


def without_others(tree: dict[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """Settings, nested, without those in whose place another one is given."""
    others = {pair[1 - i] for pair in INSTEAD for i in (0, 1) if pair[i] in given}
    dropped = [key for key in flat(tree) if key in others and key not in given]
    return pruned(tree, dropped) if dropped else tree


def pruned(tree: dict[str, Any], dropped: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """Settings, nested, without those that are `dropped` by full name, or lie in such a section."""
    return {
        key: pruned(value, dropped, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in tree.items()
        if not under(f"{prefix}{key}", dropped)
    }
