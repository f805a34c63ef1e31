"""Images with a mask each, for semantic segmentation, chosen by what a path is.

A mask belongs to the upright image: its array is as high and wide as the picture is after its EXIF
orientation, which is how labelling tools show it. A mask of another size is never turned or
resized to fit, for nothing tells which of the ways was meant.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from PIL import Image

from downstream.segmentation.data.class_table import IGNORE, ClassTable
from downstream.segmentation.data.formats import find_masks
from downstream.segmentation.data.pairing import Pairs
from downstream.segmentation.data.panoptic import PanopticLabels
from downstream.segmentation.data.pixels import (
    UNKNOWN,
    IdMap,
    colours_of,
    grey_of,
    hex_colour,
    ids_of,
    ignoring,
    open_png,
    pack,
    wrong_size,
)
from ssld.data.decode import Unreadable, image_size
from ssld.data.storage import Address, is_remote

HEADER = 2**18
"""Bytes of an image within which its size and orientation stand, nearly always."""


class Labels(Protocol):
    """What the pixels of the masks mean."""

    table: ClassTable

    def read(self, i: int, image: Image.Image, data: bytes) -> tuple[np.ndarray, IdMap]:
        """Ids or packed colours of mask i [h, w], and what they mean. Raises Unreadable."""
        ...

    def unknown(self, value: int, colours: bool) -> tuple[str, str]:
        """Of an id or packed colour that has no class: what to call it, and a clause that says
        so and what to do."""
        ...


class TableLabels:
    """Ids or colours by a class table. A picture of three equal channels has ids where the table
    has no colours."""

    def __init__(self, table: ClassTable) -> None:
        self.table = table
        numbers = list(range(len(table.classes)))
        self._by_id = ignoring([row.id for row in table.classes], numbers, table.ignored)
        known = [(i, row.colour) for i, row in enumerate(table.classes) if row.colour]
        ignored = {pack(row.colour) for row in table.rows if row.ignore and row.colour}
        complete = len(known) == len(numbers)
        self._by_colour = (
            ignoring([pack(c) for _, c in known], [i for i, _ in known], sorted(ignored))
            if complete
            else None
        )

    def read(self, i: int, image: Image.Image, data: bytes) -> tuple[np.ndarray, IdMap]:
        told = self.table.by_colour and self._by_colour is not None and image.mode == "P"
        if image.mode not in ("RGB", "RGBA") and not told:
            return ids_of(image, data), self._by_id
        if self._by_colour is None:
            ids = grey_of(image)
            if ids is not None:
                return ids, self._by_id
            raise Unreadable(
                f"an RGB picture, and {self.table.where} does not give each class a colour: add "
                "the field colour, or save ids as grey PNG"
            )
        return colours_of(image), self._by_colour

    def unknown(self, value: int, colours: bool) -> tuple[str, str]:
        what = f"colour {hex_colour(value)}" if colours else f"id {value}"
        advice = "give it a row, or list it as ignored"
        return what, f"{what} has no class in {self.table.where}: {advice}"


class MaskSource:
    """Images that have a mask; satisfies `ssld.data.source.Source`, so it pickles cheaply.

    Args:
        layout: its name, for the report.
    """

    def __init__(self, path: str, layout: str, pairs: Pairs, labels: Labels) -> None:
        self.path = path
        self.layout = layout
        self.labels = labels
        self.unlabelled = pairs.unlabelled
        """Images that have no mask; they are left out."""
        self.files = pairs.files
        """Annotation files besides the masks."""
        self.remarks = pairs.remarks
        """What the report should say of the reading."""
        self.mask_folder = pairs.mask_folder
        self._drawn = pairs.drawn
        self.class_names: list[str] = labels.table.names
        self.palette = labels.table.palette
        """uint8 [classes, 3], RGB."""
        self.ignore = IGNORE
        self._images = pairs.images
        self._rows = np.array(pairs.rows, np.int64)
        self._numbers = np.arange(len(pairs.rows))
        """By which `labels` knows the masks."""
        # Arrow strings, not a Python list: loader processes share the memory.
        self._masks = pa.array(pairs.masks, pa.large_string())

    def subset(self, images: np.ndarray) -> MaskSource:
        """Some of the images, with the classes of all.

        Args:
            images: their numbers, ascending, int64 [n].
        """
        part = copy.copy(self)
        part._rows, part._numbers = self._rows[images], self._numbers[images]
        part._masks = self._masks.take(pa.array(images))
        return part

    def __len__(self) -> int:
        return len(self._rows)

    def sample_id(self, i: int) -> str:
        return self._images.sample_id(int(self._rows[i]))

    def location(self, i: int) -> str:
        return self._images.location(int(self._rows[i]))

    def address(self, i: int) -> Address:
        """Where the image's bytes lie."""
        return self._images.address(int(self._rows[i]))

    def size(self, i: int) -> int | None:
        return self._images.size(int(self._rows[i]))

    def read(self, i: int) -> bytes:
        """The encoded image. Raises OSError, Unreadable when it is not what it was at the start."""
        return self._images.read(int(self._rows[i]))

    def mask_name(self, i: int) -> str:
        """Path of the mask, relative to `mask_folder`."""
        return self._masks[i].as_py()

    def mask_location(self, i: int) -> str:
        """Where the mask is, for messages."""
        return os.path.join(self.mask_folder, self.mask_name(i))

    def read_mask(self, i: int) -> bytes:
        """The encoded mask. Raises OSError."""
        if self._drawn is not None:
            return self._drawn.png(int(self._numbers[i]))
        return Path(self.mask_location(i)).read_bytes()

    def decode_mask(self, i: int, data: bytes) -> tuple[np.ndarray, IdMap]:
        """Ids or packed colours [h, w] and their meaning. Raises Unreadable, which names no file.

        Args:
            data: of `read_mask`.
        """
        return self.labels.read(int(self._numbers[i]), open_png(data), data)

    def header(self, i: int) -> bytes:
        """As much of the encoded image as tells its size. Raises OSError, Unreadable."""
        address = self.address(i)
        if address.offset is not None or is_remote(address.path):
            return self.read(i)
        with open(address.path, "rb") as file:
            data = file.read(HEADER)
        try:
            image_size(data)
        except Unreadable:
            return self.read(i)
        return data

    def mask(self, i: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """Class numbers 0 .. C - 1, `ignore` elsewhere, as uint8 [h, w].

        Args:
            size: height and width of the upright image, which else are read from its file.

        Raises:
            Unreadable: the mask is damaged, has another size than the image, or an id that no
                class has; names the mask's file and the field.
        """
        where = f"mask {self.mask_location(i)}"
        try:
            ids, id_map = self.decode_mask(i, self.read_mask(i))
        except (OSError, Unreadable) as error:
            raise Unreadable(f"{where}: {error}") from error
        expected = image_size(self.header(i)) if size is None else size
        if ids.shape != tuple(expected):
            raise Unreadable(f"{where}: {wrong_size(ids.shape, expected)}")
        numbers = id_map(ids)
        unknown = numbers == UNKNOWN
        if unknown.any():
            row, column = np.argwhere(unknown)[0].tolist()
            _, reason = self.labels.unknown(int(ids[row, column]), ids.dtype == np.uint32)
            raise Unreadable(f"{where}: pixel [{row}, {column}]: {reason}")
        return numbers


def open_masks(path: str, class_names: list[str] | None = None) -> MaskSource:
    """Open images with masks.

    Each folder is listed once. Images without a mask are left out and counted.

    Args:
        path: see `find_masks`.
        class_names: the network's classes, in its order; the masks must have the same ones.

    Raises:
        InputError: no such layout or split, nothing in it, a mask without its image, a class table
            that is none, other classes than `class_names`.
    """
    layout, pairs, meaning = find_masks(path, class_names)
    if isinstance(meaning, PanopticLabels):
        return MaskSource(path, layout, pairs, meaning)
    table = meaning if class_names is None else meaning.ordered(class_names)
    return MaskSource(path, layout, pairs, TableLabels(table))
