"""Seeded damage to valid inputs: bytes, texts, and the trees that JSON and YAML hold.

Nothing here knows what it damages. All that is random comes from the `Random` that is handed in,
so that an input is a pure function of its kind and its seed.
"""

from __future__ import annotations

import copy
import json
import random
from typing import Any

MARK = "ssld_foreign_ran"
"""In every payload that would run if somebody ran it; `sandbox.py` looks for it."""
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1)
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 256, 65536, 2**31, 2**63, 2**70, -(2**63) - 1),
    *(0.0, -0.5, 1.5, 1e-320, 1e300, float("nan"), float("inf"), float("-inf"), int("7" * 400)),
    *("", " ", "0", "-1", "1e5", "nan", "null", "yes", "~", "1.5", "2020-01-01", "x" * 5000),
    *("9" * 5000, "$x_{^", "a\0b", "a\nb", "\ud800", "é 中文 🐈", "%s%n{0}", "<b>&amp;", "\x1b[2J"),
    *("../../escaped", "/etc/passwd", "/dev/zero", "..", ".", "C:\\x", "file:///etc/passwd"),
    *("http://127.0.0.1:9/x", "hf-hub:a/b", "local-dir:/nowhere", "a::b", "*", "[", "{0..9}"),
    *([], {}, [[]], [None], [{}], {"": None}, {"a": {"b": {}}}, ["a", 1, None], [1] * 300),
)
DEPTHS = (20, 300, 3000)
"""Of nesting."""
CHARACTERS = "\0\t\r\n\x0b\x1b\x85\u2028\ufeff\u202e{}[]()<>:;,.*&!%@`'\"\\/|?#~=+-_$^0123456789eE"


def damaged(rng: random.Random, data: bytes, most: int = 3) -> bytes:
    """`data` after one to `most` kinds of damage, at least one of which changes it as a rule."""
    for _ in range(rng.randint(1, most)):
        data = rng.choice(BYTE_DAMAGES)(rng, data)
    return data[:1_000_000]


def _at(rng: random.Random, data: bytes) -> int:
    """A place, three times in four near the beginning, where headers are."""
    return int(len(data) * rng.random() ** rng.choice((1, 3, 3, 6))) if data else 0


def _flipped(rng: random.Random, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if found:
            found[min(_at(rng, data), len(found) - 1)] ^= 1 << rng.randrange(8)
    return bytes(found)


def _field(rng: random.Random, data: bytes) -> bytes:
    """A number of 1 to 8 bytes becomes an extreme one."""
    size, place = rng.choice((1, 2, 4, 4, 8)), _at(rng, data)
    number = rng.choice((*EXTREMES, rng.randrange(2**32))) % 256**size
    return (
        data[:place] + number.to_bytes(size, rng.choice(("little", "big"))) + data[place + size :]
    )


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: _at(rng, data)] if rng.random() < 0.7 else data[-_at(rng, data) :]


def _without(rng: random.Random, data: bytes) -> bytes:
    place = _at(rng, data)
    return data[:place] + data[place + rng.choice((1, 2, 4, 16, 512)) :]


def _repeated(rng: random.Random, data: bytes) -> bytes:
    place, size = _at(rng, data), rng.choice((1, 4, 16, 64, 512))
    part = data[place : place + size]
    return data[:place] + part * rng.choice((2, 2, 3, 100)) + data[place + size :]


def _spliced(rng: random.Random, data: bytes) -> bytes:
    size, source, target = rng.choice((1, 4, 32, 512)), _at(rng, data), _at(rng, data)
    part = data[source : source + size]
    return data[:target] + part + data[target + rng.choice((0, len(part))) :]


def _filled(rng: random.Random, data: bytes) -> bytes:
    place, size = _at(rng, data), rng.choice((1, 4, 32, 512, 100_000))
    size = len(data[place : place + size])
    return data[:place] + rng.choice((b"\0", b"\xff", b" ", b"A")) * size + data[place + size :]


def _inserted(rng: random.Random, data: bytes) -> bytes:
    place = _at(rng, data)
    return data[:place] + rng.randbytes(rng.choice((1, 2, 4, 16, 300))) + data[place:]


def _appended(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice((b"\0" * 1024, rng.randbytes(64), data, b"\n"))


def _digits(rng: random.Random, data: bytes) -> bytes:
    """A decimal number of a text header becomes another."""
    places = [i for i, byte in enumerate(data[:4096]) if 48 <= byte <= 57]
    if not places:
        return _flipped(rng, data)
    place = rng.choice(places)
    new = rng.choice((b"0", b"-1", b"9", b"99999", b"9" * 30, b"1e9", b"nan", b""))
    return data[:place] + new + data[place + 1 :]


BYTE_DAMAGES = (
    *(_flipped, _flipped, _field, _field, _field, _cut, _without, _repeated, _spliced),
    *(_filled, _inserted, _appended, _digits),
)


def nested(rng: random.Random) -> Any:
    """Lists in lists or mappings in mappings."""
    found: Any = rng.choice((None, 1, "x"))
    wrap = rng.choice((lambda x: [x], lambda x: {"a": x}))
    for _ in range(rng.choice(DEPTHS[:2])):
        found = wrap(found)
    return found


def changed(rng: random.Random, tree: Any, most: int = 3) -> Any:
    """A copy of a tree of dicts and lists in which one to `most` places are changed."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, most)):
        parent, key = _place(rng, tree)
        if parent is None:
            return _other(rng, tree)
        rng.choice(TREE_CHANGES)(rng, parent, key)
    return tree


def _place(rng: random.Random, tree: Any) -> tuple[Any, Any]:
    """A random entry; (None, None) for the tree itself, once in fifty."""
    parent, key = None, None
    while isinstance(tree, (dict, list)) and tree:
        if parent is None and rng.random() < 0.02:
            return None, None
        key = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
        parent, tree = tree, tree[key]
        if rng.random() < 0.25:
            break
    return parent, key


def _other(rng: random.Random, value: Any) -> Any:
    if rng.random() < 0.1:
        return nested(rng)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice((-value, value + 1, value * 1000, value / 7, float(value), str(value)))
    if isinstance(value, str) and rng.random() < 0.3:
        return rng.choice(
            (value.upper(), value + "\0", value + "/", value[:1], [value], value * 99)
        )
    return rng.choice(NASTY)


def _replace(rng: random.Random, parent: Any, key: Any) -> None:
    parent[key] = copy.deepcopy(_other(rng, parent[key]))


def _drop(rng: random.Random, parent: Any, key: Any) -> None:
    del parent[key]


def _again(rng: random.Random, parent: Any, key: Any) -> None:
    """Once more: in a list as a second entry, in a mapping under another name."""
    value = copy.deepcopy(parent[key])
    if isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), value)
    else:
        parent[rng.choice((f"{key}2", str(key).upper(), "", " ", "x.y", "a" * 300))] = value


def _rename(rng: random.Random, parent: Any, key: Any) -> None:
    if isinstance(parent, dict):
        parent[rng.choice((f"{key}s", str(key)[:-1], str(key).upper(), "?"))] = parent.pop(key)


def _shuffle(rng: random.Random, parent: Any, key: Any) -> None:
    if isinstance(parent, list):
        rng.shuffle(parent)
    else:
        items = list(parent.items())
        rng.shuffle(items)
        parent.clear()
        parent.update(items)


def _exchange(rng: random.Random, parent: Any, key: Any) -> None:
    other = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    parent[key], parent[other] = parent[other], parent[key]


def _wrap(rng: random.Random, parent: Any, key: Any) -> None:
    value = parent[key]
    inside = isinstance(value, list) and value and rng.random() < 0.5
    parent[key] = value[0] if inside else rng.choice(([value], {"a": value}, [value, value]))


TREE_CHANGES = (
    *(_replace, _replace, _replace, _replace, _drop, _again, _rename, _shuffle, _exchange, _wrap),
)


def as_json(rng: random.Random, tree: Any) -> bytes:
    """JSON of a tree, once in eight damaged as a text, too."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.8)
    return encoded(rng, respelled(rng, text) if rng.random() < 0.125 else text)


def respelled(rng: random.Random, text: str) -> str:
    """The text with a few slips of typing."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        place, size = rng.randrange(len(text) + 1), rng.choice((0, 1, 1, 3, 20))
        new = rng.choice(
            (rng.choice(CHARACTERS), rng.choice(CHARACTERS) * 3, text[place : place + 40], "")
            + ("NaN", "1e400", "-", "9" * 5000, "\ud800", "[" * 200, '{"a":' * 3000, "\n  ", "\n\t")
        )
        text = text[:place] + new + text[place + size :]
    return text


def encoded(rng: random.Random, text: str) -> bytes:
    """UTF-8, now and then what Windows or an old editor writes."""
    codec = rng.choice(("utf-8",) * 20 + ("utf-8-sig", "utf-16", "latin-1", "gb18030"))
    return text.encode(codec, "surrogatepass" if codec.startswith("utf-8") else "replace")
