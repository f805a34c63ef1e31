"""A stranger's text on a model card: folder names, class names and pulled manifests reach it.

It gets there in three ways only, all of `clean`: `prose` (every character that Markdown or HTML
could take for syntax as a numeric entity, which CommonMark 0.31, section 2.5, never takes for
structure), `code` (a code span) and `block` (a fence longer than any inside it).
"""

from __future__ import annotations

import re
import unicodedata

from markupsafe import Markup

LIMIT = 2_000
"""Characters of one text on a card; all of it is in ssld.json."""


def prose(text: object, limit: int = LIMIT) -> Markup:
    """Any text as plain words of a Markdown paragraph, heading or table cell."""
    cleaned = clean(text, limit)
    # A word joiner: some renderers make links of bare addresses after entities were decoded.
    cleaned = re.sub(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?=@)", "\u2060", cleaned, flags=re.IGNORECASE)
    escaped = re.sub(r"[^\w\s.,:;?!%/()'\"\u2060-]|(?<!\w)_|_(?!\w)", _entity, cleaned)
    return Markup(re.sub(r"^(?:-|\d+(?=[.)]))", _entity, escaped))  # or it would begin a list


def code(text: object, limit: int = 256) -> Markup:
    """Any text as a code span, also in a table."""
    return Markup(f"`{clean(text, limit).replace('`', chr(39)).replace('|', '¦') or '?'}`")


def clean(text: object, limit: int) -> str:
    """One line without control, format or unassigned characters, cut to `limit`."""
    whole = str(text)[: 8 * limit]
    seen = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in whole)
    line = " ".join(seen.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _entity(match: re.Match[str]) -> str:
    return "".join(f"&#{ord(c)};" for c in match.group())


def block(text: str, language: str) -> Markup:
    """A fenced block that its own text cannot close."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def slug(text: object) -> str:
    """A file's or a model's name made of any text."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", clean(text, 96)).strip("-.") or "model"
