"""The reference set, read, prepared and as workers use it: a folder of arrays, mapped into memory.

Images of the pool stream by. The main process asks `shortlist` for a whole chunk at once (one
search on its GPU), workers `examine` batches; both are functions of one image of the pool and the
reference set, whatever else is in the chunk.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssld.common.errors import InputError, one_line
from ssld.common.files import cannot_write
from ssld.curate.context import Work, batched, key
from ssld.curate.near_duplicates.hamming_embedding import HammingEmbedding, index
from ssld.curate.near_duplicates.matching import DECIMALS, RULE_VERSION, STRUCTURELESS, compare
from ssld.curate.near_duplicates.shortlist import Shortlist, Whitening, best, search
from ssld.curate.near_duplicates.sift import THUMBNAIL_PX, Features, features
from ssld.curate.sets.index import Index
from ssld.data.decode import Unreadable
from ssld.data.sources import read_address
from ssld.data.storage import Address

Read = tuple[Address, bytes]
"""Where an image is and the sha256 that it had when it was indexed."""


def reads(index: Index, rows: np.ndarray) -> list[Read]:
    """How to read rising `rows`, int64 [n]."""
    columns = index.at(rows, [*Address._fields, "sha256"]).to_pydict().values()
    return [(Address(*place), sha256) for *place, sha256 in zip(*columns, strict=True)]


def features_at(reads: Sequence[Read]) -> list[Features | str]:
    """Features of each image, or why there are none."""
    results: list[Features | str] = []
    for address, sha256 in reads:
        try:
            data = read_address(address)
            same = hashlib.sha256(data).digest() == sha256
            results.append(features(data) if same else "its bytes are others now")
        except (OSError, Unreadable) as error:
            results.append(one_line(error))
    return results


def refuse_changed(results: Sequence[object], reads: Sequence[Read]) -> None:
    """Raises InputError where there is a reason, a string, why an image is not what it was."""
    for value, (address, _) in zip(results, reads, strict=True):
        if isinstance(value, str):
            raise InputError(
                f"{address.path} is not what it was when it was indexed ({value}); give the same "
                "command again, which indexes it anew"
            )


WHITENED_AT_ONCE = 8192
"""Vectors that are whitened together, for the sake of memory."""
TEACHER_CANDIDATES = 10
"""Reference images looked at per image of the pool for the sake of the teacher's embedding."""
VOTE_CANDIDATES = 5
"""The same for votes of descriptors, beside a teacher."""
VOTE_CANDIDATES_ALONE = 10
"""And without."""


@dataclass(frozen=True)
class Pair:
    """An image of the pool examined against one of the reference set."""

    image: int
    """Place in the batch."""
    number: int
    """Of the reference image."""
    cosine: float
    """Of whitened teacher embeddings, the best over the reference image's views, also for pairs
    that votes found. Without a teacher the share of votes (`HammingEmbedding.votes`), 0 to about 1.
    """
    inliers: int
    mirrored: bool
    affine: tuple[float, ...] | None
    ncc: float | None
    """The last four as in `matching.Match`."""


class ReferenceSet:
    """Everything about the reference images, opened memory-mapped.

    Args:
        folder: one that `build` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._starts = self._open("starts")
        self._points, self._descriptors = self._open("points"), self._open("descriptors")
        self._frames, self._thumbnails = self._open("frames"), self._open("thumbnails")
        self._thumbnail_sizes = self._open("thumbnail_sizes")
        self._teacher, self._by_teacher = self._open_teacher()
        names = ("centres", "starts", "owners", "bits")
        arrays = {name: self._open(f"votes_{name}") for name in names}
        self._embedding = HammingEmbedding(arrays, len(self._starts) - 1)
        self.structureless: np.ndarray = np.diff(self._starts) < STRUCTURELESS
        """bool [n]: too few descriptors to verify anything."""

    def __len__(self) -> int:
        return len(self.structureless)

    def _open(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")

    def _open_teacher(self) -> tuple[np.ndarray | None, Whitening | None]:
        if not (self.folder / "teacher.npy").exists():
            return None, None
        mean, directions = (
            np.array(self._open(f"teacher_{part}")) for part in ("mean", "directions")
        )
        return self._open("teacher"), Whitening(mean, directions)

    @staticmethod
    def build(
        folder: Path, features: Iterable[Features], embeddings: np.ndarray | None
    ) -> ReferenceSet:
        """Write the folder, the same bytes for the same input.

        Args:
            features: of each reference image.
            embeddings: float [n, v, d], the teacher's of each image's `shortlist.views`; None
                without a teacher, which leaves the votes of descriptors alone.
        """
        folder.mkdir(parents=True, exist_ok=True)
        arrays = _columns(list(features))
        votes = index(arrays["descriptors"], np.diff(arrays["starts"]))
        arrays |= {f"votes_{name}": array for name, array in votes.items()}
        if embeddings is not None:
            arrays |= _teacher(embeddings)
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        return ReferenceSet(folder)

    def features(self, number: int) -> Features:
        """Of one reference image."""
        rows = slice(int(self._starts[number]), int(self._starts[number + 1]))
        height, width = self._thumbnail_sizes[number]
        thumbnail = np.array(self._thumbnails[number, :height, :width])
        frame = (int(self._frames[number, 0]), int(self._frames[number, 1]))
        return Features(self._points[rows], self._descriptors[rows], thumbnail, frame)

    def whiten(self, embeddings: np.ndarray) -> np.ndarray:
        """Vectors float32 [b, k] of length 1 whose products are cosines.

        Args:
            embeddings: float [b, d], the teacher's of whole frames squashed to a square.

        Raises:
            ValueError: the set was built without embeddings.
        """
        if self._by_teacher is None:
            raise ValueError(f"{self.folder} was built without embeddings: pass None to `examine`")
        return self._by_teacher.apply(embeddings)

    def shortlist(self, embeddings: np.ndarray) -> Shortlist:
        """The teacher's candidates of a chunk of images of the pool, as `whiten` takes them."""
        vectors = self.whiten(embeddings)
        assert self._teacher is not None
        count, per_image, width = self._teacher.shape
        flat = self._teacher.reshape(count * per_image, width)
        return Shortlist(vectors, search(vectors, flat, per_image, TEACHER_CANDIDATES))

    def examine(self, images: Sequence[Features | None], shortlist: Shortlist | None) -> list[Pair]:
        """Every shortlisted pair of a batch, compared.

        Args:
            images: None where unreadable: no pairs.
            shortlist: of the same images; None without a teacher.
        """
        pairs: list[Pair] = []
        for i, image in enumerate(images):
            if image is None:
                continue
            votes = self._embedding.votes(image.descriptors)
            if shortlist is None:
                numbers = np.sort(best(votes, VOTE_CANDIDATES_ALONE))
                cosines = votes[numbers]
            else:
                numbers = np.union1d(best(votes, VOTE_CANDIDATES), shortlist.numbers[i])
                cosines = self._cosines(shortlist.vectors[i], numbers)
            matched = compare(image, [self.features(int(number)) for number in numbers])
            for number, cosine, match in zip(numbers, cosines, matched, strict=True):
                # Rounded vectors can be a little longer than 1.
                rounded = round(min(float(cosine), 1.0), DECIMALS)
                pairs.append(Pair(i, int(number), rounded, **vars(match)))
        return pairs

    def _cosines(self, vector: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Of a whitened embedding [d] with the best view of each of the reference images, [n]."""
        assert self._teacher is not None
        return (self._teacher[numbers] @ vector).max(axis=1, initial=-1)


def _columns(images: Sequence[Features]) -> dict[str, np.ndarray]:
    """Image after image in one array of each kind."""
    return {
        "starts": np.cumsum([0, *(len(image.points) for image in images)]),
        "points": np.concatenate([image.points for image in images]),
        "descriptors": np.concatenate([image.descriptors for image in images]),
        "frames": np.array([image.frame for image in images]),
        "thumbnails": np.stack([_padded(image.thumbnail) for image in images]),
        "thumbnail_sizes": np.array([image.thumbnail.shape for image in images]),
    }


def _padded(thumbnail: np.ndarray) -> np.ndarray:
    height, width = thumbnail.shape
    return np.pad(thumbnail, ((0, THUMBNAIL_PX - height), (0, THUMBNAIL_PX - width)))


def _teacher(embeddings: np.ndarray) -> dict[str, np.ndarray]:
    """Whitened vectors [n, v, k] of embeddings [n, v, d], with what whitened them."""
    flat = embeddings.reshape(-1, embeddings.shape[-1])
    whitening = Whitening.fit(flat)
    steps = range(0, len(flat), WHITENED_AT_ONCE)
    whitened = np.concatenate([whitening.apply(flat[i : i + WHITENED_AT_ONCE]) for i in steps])
    return {
        "teacher": whitened.reshape(*embeddings.shape[:2], -1),
        "teacher_mean": whitening.mean,
        "teacher_directions": whitening.directions,
    }


@dataclass(frozen=True)
class Prepared:
    """The reference set, ready to be compared with."""

    folder: Path
    key: str
    rows: np.ndarray
    """int64: row of the set of each of its images, the unreadable left out."""
    structureless: np.ndarray
    """bool: too few descriptors to be verified."""


def prepare(work: Work, reference: Index, scorer_key: str | None, views: list[Path]) -> Prepared:
    """Features and, with a teacher, embeddings of the readable images of the reference set.

    Args:
        views: what `embed_reference_set` wrote; none without a teacher.

    Raises:
        InputError: none can be read.
    """
    rows = np.flatnonzero(reference.readable())
    if not len(rows):
        raise InputError(
            "protected: none of the images can be read, so that nothing would be protected; give "
            "the images that you evaluate on"
        )
    name = key("protected", RULE_VERSION, reference.keys, scorer_key)
    folder = work.out / "work" / f"protected-{name}"
    if work.main and not folder.is_dir():
        temporary = folder.with_name(f".{folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        features = _features(work, reference, rows)
        whole = [np.load(path, mmap_mode="r") for path in views]
        embeddings = np.concatenate(whole)[rows] if whole else None  # [n, views, d]
        try:
            ReferenceSet.build(temporary, features, embeddings)
            temporary.replace(folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise cannot_write(folder, error) from error
    work.processes.wait()
    return Prepared(folder, name, rows, np.array(ReferenceSet(folder).structureless))


def _features(work: Work, reference: Index, rows: np.ndarray) -> Iterator[Features]:
    items = batched(reads(reference, rows))
    with work.bar("features protected", len(rows)) as bar:
        for item, results in zip(items, work.ordered(features_at, items), strict=True):
            refuse_changed(results, item)
            for result in results:
                assert not isinstance(result, str), result  # refused above
                yield result
            bar.update(len(results))
