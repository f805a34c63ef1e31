"""WordNet's ids as the names of ImageNet-1k's classes: its folders are called by them, while its
networks call their classes by words, or by nothing. timm has ids and words in the order of the
networks (`timm.data.ImageNetInfo`)."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

CLASSES = 1000
SURE = 0.5
"""Of the names, how many must be ImageNet's word of their very number: torchvision's are but for
two, other lists reword some, and those of another order have next to none."""


def ids_of(folders: Iterable[str], count: int, names: Sequence[str] | None) -> list[str] | None:
    """The ids of a network's classes, in its order, where folders are called by them.

    Args:
        folders: names of all classes of the images; they may be of some classes only.
        count: of the network's classes.
        names: of them, if it states any.

    Returns:
        None unless all folders are ids of ImageNet-1k, and the network has as many classes,
        without names or with ImageNet's words in ImageNet's order.
    """
    folders = set(folders)
    if count != CLASSES or not folders or not all(re.fullmatch("n[0-9]{8}", x) for x in folders):
        return None
    words = _words()
    if not folders <= words.keys():
        return None
    if names:
        pairs = zip(names, words.values(), strict=True)
        if sum(not known.isdisjoint(_parts(name)) for name, known in pairs) < SURE * CLASSES:
            return None
    return list(words)


@functools.cache
def _words() -> dict[str, frozenset[str]]:
    from timm.data.imagenet_info import ImageNetInfo  # takes seconds, and other folders do without

    info = ImageNetInfo("imagenet-1k")
    described = ((x, info.label_name_to_description(x)) for x in info.label_names())
    return {x: frozenset(_parts(words)) for x, words in described}


def _parts(name: str) -> set[str]:
    """`tench, Tinca tinca` -> both, spelled alike."""
    return {re.sub("[^a-z0-9]+", " ", part.lower()).strip() for part in name.split(",")}
