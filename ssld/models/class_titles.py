"""What pages and tables call a network's classes: WordNet's words for ImageNet's.

Weights of ImageNet rarely name their classes, but timm has the words of all its subsets, in the
order in which weights count them (timm.data.ImageNetInfo; by number of classes, as timm's own
`infer_imagenet_subset`). A network that merely has as many classes may be of others: its classes
keep their number, with the word that ImageNet has for it. Labels are never matched by these words;
folders called by ids are (`ssld/data/imagenet.py`).
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence

from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

WORDNET = re.compile(r"n[0-9]{8}")
"""An id that folders and weights of ImageNet use for a name."""
TRAINED_ON = re.compile(r"in(1k|12k|21k|22k)$")
"""How timm's names of weights end, `a1_in1k`, `augreg_in21k_ft_in1k`."""


def class_titles(names: Sequence[str] | None, count: int, *, of_imagenet: bool) -> list[str] | None:
    """
    Args:
        names: of the classes, in order, where the network states them.
        count: of its classes.
        of_imagenet: its weights say so, by their name of timm.

    Returns:
        a title for each class; None where nothing is known.
    """
    if names:
        return list(titled(tuple(names))) if all(map(WORDNET.fullmatch, names)) else list(names)
    subset = infer_imagenet_subset({"num_classes": count})
    ids = _ids(subset) if subset else ()
    if len(ids) != count:
        return None
    words = titled(ids)
    if of_imagenet:
        return list(words)
    shown = str(subset).replace("imagenet", "ImageNet")
    return [f"class {i} ({word} in {shown})" for i, word in enumerate(words)]


@functools.cache
def _ids(subset: str) -> tuple[str, ...]:
    name = {"imagenet-21k-miil": "imagenet21kmiil"}.get(subset, subset)
    return tuple(ImageNetInfo(name).label_names())


@functools.cache
def titled(ids: tuple[str, ...]) -> tuple[str, ...]:
    """The first word of each id; with the id where another one has the same."""
    lemmas = ImageNetInfo()._lemmas  # of all ids, which `label_name_to_description` looks up
    words = [lemmas.get(x, x).split(", ")[0] for x in ids]
    counts = Counter(words)
    return tuple(w if counts[w] == 1 else f"{w} ({x})" for w, x in zip(words, ids, strict=True))
