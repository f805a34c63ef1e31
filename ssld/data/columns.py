"""Which columns of a Parquet file hold images, labels and class names: ours, and those that the
hub's `datasets` library writes (docs/source/about_dataset_features.mdx there): `img` or `image`
with `bytes` and `path`, integers as labels, and their names as JSON in the schema's metadata, under
`huggingface`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ssld.common.errors import InputError

pc: Any = pyarrow.compute  # whose functions are made when it is imported

IMAGES = ("image", "img", "picture", "jpg", "png", "webp")
"""Names of columns of images, beside our own `bytes`; another one is taken where it is the only
column that holds `bytes` and `path`."""
LABELS = ("fine_label", "labels", "cls")
"""Names of columns of labels where there is no `label`."""


@dataclass(frozen=True)
class Columns:
    """Names of a file's columns; None for what it does not have."""

    bytes: str | None
    """Of encoded images, binary, or with a field `bytes`."""
    nested: bool
    """Whether it is one with fields `bytes` and maybe `path`."""
    path: str | None
    """Of paths, text."""
    label: str | None
    names: list[str] | None
    """Class names by number."""


def find_columns(schema: pa.Schema) -> Columns:
    """What a file's columns are; `bytes` is preferred to paths."""
    types = dict(zip(schema.names, schema.types, strict=True))
    names = [name for name in ("bytes", *IMAGES) if name in types]
    structs = [name for name, kind in types.items() if _field(kind, "bytes")]
    candidates = names + (structs if len(structs) == 1 else [])
    images = next((x for x in candidates if _binary(types[x]) or _field(types[x], "bytes")), None)
    paths = [x for x in ("path", *candidates) if x in types and _text(types[x])]
    label = _label(types, _features(schema))
    return Columns(
        images,
        images is not None and not _binary(types[images]),
        paths[0] if paths else None,
        label,
        _class_names(_features(schema), label),
    )


def _label(types: dict[str, pa.DataType], features: dict) -> str | None:
    if "label" in types:
        return "label"
    told = [name for name in types if _class_names(features, name)]
    usual = [name for name in LABELS if name in types]
    usual = [x for x in usual if pa.types.is_integer(types[x]) or _text(types[x])]
    return usual[0] if usual else told[0] if len(told) == 1 else None


def _features(schema: pa.Schema) -> dict:
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = features["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _class_names(features: dict, label: str | None) -> list[str] | None:
    feature = features.get(label) if label else None
    names = feature.get("names") if isinstance(feature, dict) else None
    if not isinstance(names, list) or not all(isinstance(x, str) and x for x in names):
        return None
    return names if names and len(set(names)) == len(names) else None


def _field(kind: pa.DataType, name: str) -> bool:
    return pa.types.is_struct(kind) and any(
        field.name == name and _binary(field.type) for field in kind.fields
    )


def _binary(kind: pa.DataType) -> bool:
    kinds = pa.types
    return kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_binary_view(kind)


def _text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    kinds = pa.types
    return kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)


def inner(column: pa.ChunkedArray | pa.Array, name: str) -> pa.ChunkedArray | pa.Array:
    """A field of a column of structs, null where the struct is."""
    return pc.struct_field(column, name)


def read_labels(where: str, column: pa.ChunkedArray, names: list[str] | None) -> pa.Array:
    """Class numbers (int64) or names (string), null for an unlabeled image.

    Unlabeled are null, NaN (what pandas makes of null), an empty text, and -1 as in the hub's test
    sets. With `names` a number is the name of that number.

    Raises:
        InputError: neither whole numbers nor text; a number beyond the names.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    if _text(column.type):
        column = column.cast(pa.large_string())
        return whole(pc.if_else(pc.equal(column, ""), None, column))
    numbers = _numbers(where, column, kind)
    if names is None:
        return numbers
    highest = pc.max(numbers).as_py()
    lowest = pc.min(numbers).as_py()
    if highest is not None and (highest >= len(names) or lowest < 0):
        wrong = highest if highest >= len(names) else lowest
        row = pc.index(numbers, wrong).as_py()
        raise InputError(
            f"{where}: row {row} has label {wrong}, but the file names {len(names)} classes, 0 to "
            f"{len(names) - 1}; mend the labels"
        )
    return pa.array(names, pa.large_string()).take(numbers)


def _numbers(where: str, column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), pa.int64())
    if pa.types.is_floating(column.type):
        values = column.cast(pa.float64()).fill_null(np.nan).to_numpy()
        known = ~np.isnan(values)
        given = values[known]
        if (np.abs(given) < 2**53).all() and (np.floor(given) == given).all():
            column = pa.chunked_array([pa.array(np.where(known, values, -1).astype(np.int64))])
    if not pa.types.is_integer(column.type):
        raise InputError(f"{where}: the column label is {kind}; give integers or strings")
    try:
        column = column.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise InputError(f"{where}: a label is beyond 64 bits; give class numbers") from error
    return whole(pc.if_else(pc.equal(column, -1), None, column))


def whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column in one piece; one that is already is not copied."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def texts_at(column: pa.ChunkedArray | pa.Array, rows: np.ndarray) -> list[str]:
    """A column of text at `rows`, int64 [n]; by numpy, which makes texts ten times as fast."""
    return whole(column).take(pa.array(rows)).to_numpy(zero_copy_only=False).tolist()
