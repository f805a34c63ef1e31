"""What settings name on this machine must be there: asked before torch is imported."""

from __future__ import annotations

import os
import re
from typing import Any

from ssld.common.errors import InputError

SOURCES = ("labeled", "unlabeled", "train", "val")


def check_inputs(config: Any, where: str = "") -> None:
    """Plain local paths of sources and weights.

    Args:
        config: settings of any command.
        where: they stand, for messages.

    Raises:
        InputError: there is nothing, or an empty folder.
    """
    for name, path in [*_sources(config), *_weights(config)]:
        _check(f"{where}: {name}" if where else name, path)


def _sources(config: Any) -> list[tuple[str, str]]:
    data = getattr(config, "data", None)
    if isinstance(data, str | list):  # of `ssld evaluate`
        return [("data", path) for path in _listed(data)]
    return [(f"data.{x}", path) for x in SOURCES for path in _listed(getattr(data, x, None))]


def _weights(config: Any) -> list[tuple[str, str]]:
    groups = [("teacher", getattr(config, "teacher", None))]
    groups += [("teachers", teacher) for teacher in getattr(config, "teachers", [])]
    if not hasattr(config, "run"):  # a later stage's student is another stage's, perhaps to come
        groups.append(("student", getattr(config, "student", None)))
    groups.append(("backbone", getattr(config, "backbone", None)))
    found = [(f"{name}.checkpoint", getattr(x, "checkpoint", None)) for name, x in groups]
    return [(name, path) for name, path in found if path]


def _listed(paths: str | list[str] | None) -> list[str]:
    return [paths] if isinstance(paths, str) else paths or []


def _check(name: str, given: str) -> None:
    path = given
    if not os.path.exists(given):
        path = os.path.expanduser(given.partition("::")[0])  # annotations::images, folder::split
    if not path or "://" in path:
        return
    if os.path.isdir(path):
        with os.scandir(path) as entries:  # of millions one is enough
            if next(entries, None) is None:
                raise InputError(f"{name}: {path} is an empty folder")
    elif not os.path.exists(path) and not re.search(r"[?{*[]", path):  # no pattern
        raise InputError(f"{name}: {path}: no such file or folder; check the path")
