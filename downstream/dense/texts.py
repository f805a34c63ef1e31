"""Text and values of files that others wrote: their encodings, and how they are shown in a
sentence."""

from __future__ import annotations

import codecs
import re
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path

from ssld.common.errors import InputError
from ssld.common.streams import printable
from ssld.data.storage import is_text

BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
GB = "gb18030"
"""Holds GB2312 and GBK, what Chinese Windows saves."""
TWO_BYTE_ENCODINGS = re.compile(r"(gb|big5|euc|shift|sjis|cp9|hz|johab)", re.IGNORECASE)
"""Encodings of two bytes a character, whose text may happen to be UTF-8 of Latin letters."""
ENCODINGS = re.compile(
    r"(utf|gb|big5|cp|windows|iso|latin|ascii|us-ascii|euc|shift|sjis|koi8|mac|hz|johab|tis)[\w-]*",
    re.IGNORECASE,
)
"""Names of encodings; Python's other codecs (punycode, unicode_escape) are none."""
TRUE, FALSE = ("true", "1", "yes", "y"), ("false", "0", "no", "n", "")

_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxdict, _short.maxstring, _short.maxother = 3, 6, 4, 80, 80


def shown(value: object) -> str:
    """A value for a sentence: one line, bounded in length and depth, printable."""
    return printable(_short.repr(value))[:200]


def short_line(text: str, most: int = 200) -> str:
    """A name for a line of text: white space is one space, what cannot be printed is escaped, and
    what is longer than `most` characters is cut."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"


def decode_text(data: bytes, declared: str | None = None) -> tuple[str, str]:
    """Bytes -> text, and the encoding that it was taken to have: the one of a byte order mark, or
    UTF-8 where the bytes are that, or `declared`, or a guess between GB 18030 and Latin-1.

    Args:
        declared: what the file itself says.
    """
    for mark, encoding in BOMS:
        if data.startswith(mark):
            return data.decode(encoding, errors="replace"), encoding
    if 0 in data[:2]:
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
        return data.decode(encoding, errors="replace"), encoding
    known = declared if declared and ENCODINGS.fullmatch(declared) else None
    text = _decoded(data, "utf-8")
    if text is not None and not (known and TWO_BYTE_ENCODINGS.match(known) and _is_latin(text)):
        return text, "utf-8"
    if known and (guessed := _decoded(data, known)) is not None:
        return guessed, known
    if text is not None:
        return text, "utf-8"
    if _in_pairs(data) and (guessed := _decoded(data, GB)) is not None:
        return guessed, GB
    return data.decode("latin-1"), "latin-1"


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except (UnicodeError, LookupError):
        return None


def _is_latin(text: str) -> bool:
    """Has letters beyond ASCII, of which none takes three bytes of UTF-8."""
    return not text.isascii() and max(text) < "\u0800"


def _in_pairs(data: bytes) -> bool:
    """Whether bytes above 127 mostly come in pairs, as Chinese characters do."""
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", data)]
    return 2 * sum(length % 2 == 0 for length in runs) >= len(runs)


def read_text(path: Path) -> str:
    """The text of a file, see `decode_text`.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return decode_text(path.read_bytes())[0]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def require_unique(values: Sequence[object], what: Callable[[int], str]) -> None:
    """Raise InputError naming the first value that occurs again; `what` describes entry i."""
    first: dict[object, int] = {}
    for i, value in enumerate(values):
        if first.setdefault(value, i) != i:
            again = f"as already in entry {first[value]}"
            raise InputError(f"{what(i)} is {shown(value)}, {again}; make them distinct")


def require_name(value: object, where: str) -> str:
    """A name as text: a number is one, too.

    Raises:
        InputError: it is neither, or cannot be written down.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InputError(f"{where} is {shown(value)}; give a name")
    name = str(value)
    if not writable(name):
        raise InputError(f"{where} is {shown(name)}, which is no text; give a name")
    return name


def require_flag(value: object, where: str) -> bool:
    """True or false as files write them (true, 1, yes, y); nothing is false.

    Raises:
        InputError: it is neither.
    """
    word = str(value or "").strip().lower() if isinstance(value, bool | int | str | None) else "?"
    if word not in (*TRUE, *FALSE):
        raise InputError(f"{where} is {shown(value)}; give true or false")
    return word in TRUE


def writable(name: str) -> bool:
    """Whether a name is text: no half characters, which no file can hold, and no NUL."""
    return is_text(name) and "\0" not in name


def name_lines(path: Path) -> list[str]:
    """The names in a file, one a line, distinct.

    Raises:
        InputError: it cannot be read, a name occurs twice, or there is none.
    """
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    for i, name in enumerate(names):
        require_name(name, f"{path}: name {i + 1}")
    require_unique(names, lambda i: f"{path}: name {i + 1}")
    if not names:
        raise InputError(f"{path}: is empty; write a name on each line")
    return names
