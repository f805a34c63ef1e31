"""Which mask is of which image, by their names in two folders."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from downstream.segmentation.data.drawn import Drawn
from ssld.common.errors import InputError
from ssld.data.folder import FolderSource
from ssld.data.source import Source

IMAGE_ENDS = ("", "_leftImg8bit", "_sat", "_image")
"""What images are called behind the name that they share with their mask."""


@dataclass(frozen=True)
class Pairs:
    """Images and their masks."""

    images: Source
    rows: list[int]
    """Numbers in `images` of those that have a mask."""
    masks: list[str]
    """Mask of each, relative to `mask_folder`."""
    mask_folder: str
    unlabelled: list[str] = field(default_factory=list)
    """Relative paths of images without a mask."""
    files: list[str] = field(default_factory=list)
    """Lists and tables, for hashes."""
    drawn: Drawn | None = None
    """The masks, where no files have them; then `masks` are names for messages."""
    remarks: tuple[str, ...] = ()
    """What the report should say of the reading."""


def stem_of(name: str) -> str:
    return os.path.splitext(name)[0]


def numbers_of(source: FolderSource, key: Callable[[str], str | None]) -> dict[str, int]:
    """Number of each image by its key; those whose key is None belong to something else.

    Raises:
        InputError: two have the same key.
    """
    numbers: dict[str, int] = {}
    for i in range(len(source)):
        name = key(source.sample_id(i))
        if name is None:
            continue
        if name in numbers:
            raise InputError(
                f"{source.path}: {source.sample_id(numbers[name])} and {source.sample_id(i)} would "
                "have the same mask; rename one of them"
            )
        numbers[name] = i
    return numbers


def refuse_other_formats(masks: FolderSource) -> None:
    for i in range(len(masks)):
        if not masks.sample_id(i).lower().endswith(".png"):
            raise InputError(
                f"{masks.location(i)}: masks are read from PNG only, for others may change the "
                "ids; save it as PNG, or move it away"
            )


def pair(
    images: FolderSource,
    masks: FolderSource,
    image_key: Callable[[str], str | None],
    mask_key: Callable[[str], str | None],
) -> Pairs:
    """Pairs of the same key.

    Raises:
        InputError: a mask has no image, or no image a mask.
    """
    image_of, mask_of = numbers_of(images, image_key), numbers_of(masks, mask_key)
    for name, i in mask_of.items():
        if name not in image_of:
            raise InputError(
                f"{masks.location(i)}: this mask has no image {name!r} in {images.path}; add the "
                "image or move the mask away"
            )
    both = [name for name in image_of if name in mask_of]
    if not both:
        raise InputError(
            f"{images.path}: no image has a mask in {masks.path}; a mask is a PNG named as its "
            "image is"
        )
    return Pairs(
        images,
        [image_of[name] for name in both],
        [masks.sample_id(mask_of[name]) for name in both],
        masks.path,
        [images.sample_id(i) for name, i in image_of.items() if name not in mask_of],
    )


def endings(images: FolderSource, masks: FolderSource) -> tuple[str, str]:
    """What the names of images and of masks end in behind what they share.

    Raises:
        InputError: the masks are named in several ways, as those of several kinds are.
    """
    stems = [stem_of(masks.sample_id(i)) for i in range(len(masks))]
    every = [stem_of(images.sample_id(i)) for i in range(len(images))]
    if set(stems) & set(every):
        return "", ""
    found = {}
    for image_end in IMAGE_ENDS:
        keys = {x.removesuffix(image_end) for x in every if x.endswith(image_end)}
        longest = [_longest(stem, keys) for stem in stems]
        ends = {stem[len(key) :] for stem, key in zip(stems, longest, strict=True) if key}
        if ends and all(longest):
            found[image_end] = ends
    for image_end, ends in found.items():
        if len(ends) == 1:
            return image_end, ends.pop()
    for ends in found.values():
        raise InputError(
            f"{masks.path}: its masks are named as their images and then "
            f"{', '.join(sorted(ends)[:5])}; keep the ones to train on, as others would be taken "
            "for them"
        )
    return "", ""


def _longest(stem: str, keys: set[str]) -> str:
    """The longest beginning that is one of `keys`, or nothing."""
    return next((stem[:end] for end in range(len(stem), 0, -1) if stem[:end] in keys), "")


def ends_with(end: str) -> Callable[[str], str | None]:
    return lambda name: stem_of(name).removesuffix(end) if stem_of(name).endswith(end) else None
