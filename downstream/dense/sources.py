"""What a run is trained and evaluated on: human annotations, or a part of them, generated ones
beside them, and what is held out."""

from __future__ import annotations

import hashlib
import math
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from downstream.dense.config import AnnotatedConfig, DownstreamConfig
from downstream.dense.preflight import Annotated, Readable, in_both, same_bytes, same_pixels
from downstream.dense.texts import shown
from ssld.common.errors import InputError
from ssld.data.sampling import ApartSampler, Order, Sampler, permutation
from ssld.data.source import Images, evenly_spread
from ssld.engine.processes import Processes, on_main

Opened = TypeVar("Opened", bound=Annotated)
LABELED = "labeled.txt"
"""In a run folder: which images are the labeled share, or all but what is held out of them."""
HELD_OUT = "held_out.txt"
"""In a run folder: which images of `data.train` are held out, where `data.val` is empty."""
IMAGES_PER_HELD_OUT = 10
"""At most one annotated image in this many is held out: sets of them are small."""
SHOWN = 5
"""Images that a message names."""


@dataclass(frozen=True)
class Sources(Generic[Opened]):
    """What a run is trained and evaluated on, all with the same classes in the same order."""

    train: list[Opened]
    """With human annotations; of each the part that `data.labeled_share` says."""
    generated: list[Opened]
    val: list[Opened]

    @property
    def seen(self) -> list[Opened]:
        """All that is trained on, generated sets last."""
        return [*self.train, *self.generated]

    def by_role(self) -> dict[str, list[Opened]]:
        roles = {"train": self.train, "generated": self.generated, "val": self.val}
        return {role: sources for role, sources in roles.items() if sources}


def open_sources(
    data: AnnotatedConfig, open_source: Callable[[str, list[str] | None], Opened], seed: int
) -> Sources[Opened]:
    """Open everything that a run names.

    Args:
        open_source: (path, names of the classes in order, or None for the source's own) -> source.
        seed: decides the labeled share.

    Raises:
        InputError: a source that cannot be opened, or has other classes; a share without an image;
            too few to hold some out.
    """
    names = data.classes

    def opened(setting: str, path: str) -> Opened:
        nonlocal names
        try:
            source = open_source(path, names)
        except InputError as error:
            raise InputError(f"{setting}: {error}") from error
        names = names or source.class_names
        return source

    train = [opened("data.train", path) for path in data.train]
    val = [opened("data.val", path) for path in data.val]
    if not val:
        train, val = _hold_out(train, data.holdout)
    classes = names or []
    generated = [_open_generated(path, classes, data.train[0], open_source)
                 for path in data.generated]  # fmt: skip
    shares = [_labeled(x, i, data.labeled_share, seed) for i, x in enumerate(train)]
    return Sources(shares, generated, val)


def _hold_out(train: list[Opened], wanted: int) -> tuple[list[Opened], list[Opened]]:
    """
    Returns:
        the rest of each source, and what is held out.

    Raises:
        InputError: the sources are too small, or one of the parts has nothing to learn from.
    """
    chosen = evenly_spread([*map(len, train)], wanted, IMAGES_PER_HELD_OUT)
    why = "data.val is empty, so that images of data.train are held out"
    if not any(map(len, chosen)):
        raise InputError(
            f"{why}, at most one in {IMAGES_PER_HELD_OUT} of each source, and the largest has "
            f"{max(map(len, train), default=0)}: name held-out images as data.val"
        )
    kept, held = [], []
    for source, rows in zip(train, chosen, strict=True):
        rest = np.setdiff1d(np.arange(len(source)), rows)
        try:
            kept.append(source.subset(rest) if len(rows) else source)
            held += [source.subset(rows)] if len(rows) else []
        except InputError as error:
            raise InputError(f"{why}: {error}, or name data.val") from error
    return kept, held


def _open_generated(
    path: str,
    names: list[str],
    human: str,
    open_source: Callable[[str, list[str] | None], Opened],
) -> Opened:
    """A set with generated annotations. Its class table must be that of the human ones: a class
    that the teacher never heard of would be background in all of its images."""
    try:
        source = open_source(path, None)
        own = source.class_names
        of_one = [name for name in [*names, *own] if (name in names) != (name in own)]
        if of_one:
            raise InputError(
                f"{path} has the classes {shown(own)}, the training set {human} {shown(names)}: "
                f"only one of them has {shown(of_one[0])}; label the images with a teacher of the "
                "same classes"
            )
        return source if own == names else open_source(path, names)
    except InputError as error:
        raise InputError(f"data.generated: {error}") from error


def _labeled(source: Opened, number: int, share: float, seed: int) -> Opened:
    """The part of a training source that counts as labeled: a smaller share is part of a larger."""
    if share == 1:
        return source
    count = round(share * len(source))
    if count == 0:
        raise InputError(
            f"data.labeled_share is {share:g}: of the {len(source)} images of {source.path} that "
            f"is none; give at least {math.ceil(1000 / len(source)) / 1000:g}"
        )
    chosen = np.sort(permutation(len(source), f"{seed}/labeled/{number}")[:count])
    try:
        return source.subset(chosen)
    except InputError as error:
        raise InputError(f"data.labeled_share is {share:g}: {error}") from error


def sample_order(config: DownstreamConfig, sources: Sources[Opened]) -> Order:
    """Which image is seen when: by size, or with generated sets `generated_share` of them, of each
    minibatch in expectation (an epoch has whole images of each source, so to half an image of it)
    or, with `minibatch: apart`, of the forward passes of a step.

    Raises:
        InputError: a source of which no image would be seen in an epoch.
    """
    human, generated = ([len(x) for x in part] for part in (sources.train, sources.generated))
    if not generated:
        return Sampler(human, None, config.seed)
    if config.data.minibatch == "apart":
        return ApartSampler(
            Sampler(human, None, config.seed),
            Sampler(generated, None, config.seed),
            pass_size=config.batch_size // config.accumulate,
            passes=config.accumulate,
            second_passes=int(config.generated_passes),
        )
    share = config.data.generated_share
    fractions = [(1 - share) * size / sum(human) for size in human]
    fractions += [share * size / sum(generated) for size in generated]
    order = Sampler([*human, *generated], fractions, config.seed)
    unseen = [x.path for x, count in zip(sources.seen, order.counts, strict=True) if not count]
    if unseen:
        raise InputError(
            f"data.generated_share is {share:g}: of {unseen[0]} no image would be seen in an epoch "
            f"of {order.samples_per_epoch} samples; give another share"
        )
    return order


def list_of(sources: Sequence[Annotated], *, several: bool) -> str:
    """The ids of images, one a line; of `several` sources of `data.train` `PATH<tab>ID`."""
    lines = [
        f"{source.path}\t{source.sample_id(i)}\n" if several else f"{source.sample_id(i)}\n"
        for source in sources
        for i in range(len(source))
    ]
    return "".join(lines)


def refuse_held_out(
    processes: Processes, val: Sequence[Readable], others: Sequence[Readable], setting: str
) -> None:
    """
    Args:
        others: images that are trained on without human annotations.
        setting: names them, for messages.

    Raises:
        InputError: some of them are held out: on all processes, by the main one, that alone reads
            them.
    """
    if others:
        on_main(processes, _refuse_held_out, val, others, setting)


def _refuse_held_out(val: Sequence[Readable], others: Sequence[Readable], setting: str) -> None:
    found = in_both(val, others) or same_bytes(val, others) or same_pixels(val, others)
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise InputError(
            f"{setting}: {len(found)} of its images are held out in data.val, by place, "
            f"to the byte or by their pixels ({', '.join(found[:SHOWN])}{more}): the "
            "evaluation would be on training images; take them out of one of the two"
        )


def require_same_images(accelerator: Accelerator, sources: Sequence[Images]) -> None:
    """
    Raises:
        InputError: on all processes, where one of them would train on other images than the main
            process: it sees another state of a source, or drew another labeled share.
    """
    if accelerator.num_processes == 1:
        return
    names = (source.sample_id(i) for source in sources for i in range(len(source)))
    digest = hashlib.sha256("\0".join(names).encode("utf-8", "backslashreplace")).hexdigest()
    count = sum(map(len, sources))
    seen = gather_object([(digest, count, accelerator.process_index, socket.gethostname())])
    others = [x for x in seen if x[0] != seen[0][0]]
    if others:
        _, images, rank, host = others[0]
        raise InputError(
            f"process {rank} on {host} would train on {images} other images than process 0 on "
            f"{seen[0][3]} ({seen[0][1]}): the sources in `data` must be the same for all "
            "processes; put them on shared storage, and change nothing there while a run starts"
        )
