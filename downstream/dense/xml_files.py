"""XML of annotations as others write it.

Files may be in the encoding that they declare, and in UTF-8, GB 18030 (GBK, GB2312) or Latin-1
whatever they declare. Entities of their own, which can blow up to gigabytes or name other files,
are refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from downstream.dense.texts import decode_text
from ssld.common.errors import InputError

DECLARATION = re.compile(rb"""<\?xml[^>]*?encoding\s*=\s*["']([^"']{1,40})["']""")


def read_xml(file: Path) -> tuple[ElementTree.Element, str | None]:
    """The file's tree, and in which encoding it was read if that is not the one it states.

    Raises:
        InputError: it cannot be read, is no XML or defines entities.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error})") from error
    stated = DECLARATION.search(data[:200])
    declared = stated[1].decode("ascii", "replace") if stated else "utf-8"
    text, encoding = decode_text(data, declared)
    if "<!ENTITY" in text:
        raise InputError(f"{file}: defines entities (<!ENTITY), which annotations have no use for")
    # Without its declaration: the text has been decoded, and expat knows few encodings.
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text.lstrip("\ufeff"), count=1)
    try:
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read as XML ({error})") from error
    same = encoding == declared or encoding.startswith("utf-") or declared[:2].lower() == "gb"
    return tree, None if same else encoding
