"""The record that a run keeps of its held-out images, for intervals over images (`ssld ab`)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssld.common.files import write_atomically

HELD_OUT = "held_out.npz"
"""In a run folder: `ids`, and what the exported network made of each held-out image."""


def write_held_out(folder: Path, ids: Sequence[str], **arrays: np.ndarray) -> None:
    """Write the record into a run folder.

    Args:
        ids: of the images that count, in the order of the arrays' rows.

    Raises:
        InputError: it cannot be written.
    """
    buffer = io.BytesIO()
    content: dict[str, Any] = {"ids": np.array(ids, dtype=np.str_), **arrays}
    np.savez_compressed(buffer, **content)
    write_atomically(folder / HELD_OUT, buffer.getvalue())
