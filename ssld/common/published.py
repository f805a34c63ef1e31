"""Settings as they may be published."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def without_secrets(value: Any) -> Any:
    """Settings without what only describes a machine or opens a door: local paths that are
    absolute or lead out of the working folder keep their last two components, and none of a home
    folder's own; URLs lose user, password, query and fragment."""
    if isinstance(value, Mapping):
        return {k: without_secrets(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(x) for x in value]
    if not isinstance(value, str):
        return value
    return "::".join(_shortened(part) for part in value.split("::"))  # fsspec chains URLs so


def _shortened(text: str) -> str:
    if text.startswith("local-dir:"):
        return "local-dir:" + _shortened(text.removeprefix("local-dir:"))
    url = re.match(r"([A-Za-z][\w+.-]*)://(.*)", text, re.DOTALL)
    if url and url[1].lower() in ("file", "local"):
        return _shortened(url[2])
    if url:
        host, slash, path = re.split(r"[?#]", url[2], maxsplit=1)[0].partition("/")
        if re.search(r":(?!\d+$)", host.rpartition("@")[2]):  # a password with a slash in it
            host, slash, path = path.rpartition("@")[2].partition("/")
        return f"{url[1]}://{host.rpartition('@')[2]}{slash}{path}"
    plain = text.replace("\\", "/")
    if not re.match(r"/|~|[A-Za-z]:/|(\./)*\.\./", plain):
        return text
    parts = plain.removeprefix(f"{Path.home()}/").split("/")
    parts = [part for part in parts if part not in ("", ".", "..")]
    homes = [i + 2 for i, part in enumerate(parts) if part.lower() in ("home", "homes", "users")]
    rest = parts[homes[-1] :] if homes else parts
    return "/".join([x for x in rest if not x.startswith("~") and x != "root"][-2:]) or "~"
