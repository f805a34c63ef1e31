"""Which reference images share descriptors with a picture: a shortlist without a trained network.

Hamming embedding: Jegou, Douze and Schmid 2008, "Hamming embedding and weak geometric consistency
for large scale image search" (ECCV), section 3: descriptors are filed under visual words, each with
64 bits that say where in its word it lies; a query's descriptor votes for those of its word with
similar bits. Votes fall with the distance as in Jegou, Douze and Schmid 2010, "Improving
bag-of-features for large scale image search" (IJCV 87), section 4.2, and a descriptor that is like
many shares its vote among them (2009, "On the burstiness of visual elements", CVPR, section 4.2).
Words are pairs of words, one for each half of the descriptor (Babenko and Lempitsky 2012, "The
inverted multi-index", CVPR), so that a million of them cost two small matrix products.

Why not VLAD (Jegou et al. 2010), one vector per image: with 3,459 reference photographs the right
one was among the first 10 for 95.1 % of hard edits (128 centres, 512 dimensions; 98.9 % with all
16,384), and for 99.9 % here, in 1.1 ms; benchmarks/curation.py has both.

Everything up to the bits is arithmetic on whole numbers, exact in float32, so that a picture's
votes are its own whatever is asked in the same call and however many threads there are.
"""

from __future__ import annotations

import functools

import numpy as np

from ssld.curate.near_duplicates.matching import mirrored_descriptors

PER_WORD = 32
"""Descriptors per word that the number of words aims at; crowded words have several times more."""
MAX_HALF_WORDS = 1024
ROUNDS = 12
"""Of k-means."""
FIT_DESCRIPTORS = 50_000
"""Descriptors, evenly spread, that words are fitted to."""
WIDTH_BITS = 8
"""A vote is exp(-(bits that differ / WIDTH_BITS) ** 2), the paper's formula; it has 16 for millions
of words' worth of images, 6 and 10 do like 8 here."""
MAX_BITS = 20
"""Votes from farther are noise: unrelated descriptors differ in 32 of 64 bits, give or take 4."""
CHUNK = 100_000

_WEIGHTS = np.exp(-((np.arange(65) / WIDTH_BITS) ** 2)) * (np.arange(65) <= MAX_BITS)


def evenly(total: int, count: int) -> np.ndarray:
    """At most `count` evenly spread row numbers of `total`."""
    return np.arange(total) if total <= count else np.arange(count) * total // count


class HammingEmbedding:
    """Descriptors of all reference images and of their mirrored selves, by word.

    Args:
        arrays: what `index` made, in memory or mapped.
        images: number of reference images.
    """

    def __init__(self, arrays: dict[str, np.ndarray], images: int) -> None:
        self.images = images
        self._centres = np.array(arrays["centres"])
        self._starts = np.asarray(arrays["starts"])
        self._owners, self._bits = arrays["owners"], arrays["bits"]

    def votes(self, descriptors: np.ndarray) -> np.ndarray:
        """Votes of one picture's descriptors, uint8 [n, 128], for each reference image.

        Returns:
            float64 [images], the larger of those for the image and for its mirrored self; as a
            share of the votes that the picture would give an exact copy, so about 1 for that.
        """
        if not len(descriptors) or not len(self._owners):
            return np.zeros(self.images)
        word, bits = _file(descriptors, self._centres)
        # Every descriptor meets all that are filed under its word, `count` [n] from `first` [n] on:
        # m meetings, in one array. `filed` [m]: whom; `voter` [m]: who of the picture's.
        first, count = self._starts[word], self._starts[word + 1] - self._starts[word]
        skipped = np.cumsum(count) - count
        filed = np.arange(count.sum()) + np.repeat(first - skipped, count)
        distance = np.bitwise_count(self._bits[filed] ^ np.repeat(bits, count))
        near = distance <= MAX_BITS
        voter = np.repeat(np.arange(len(word)), count)[near]
        weight = _WEIGHTS[distance[near]]
        crowd = np.bincount(voter, weight, minlength=len(word))  # [n]: all that one has given
        share = 1 / np.sqrt(np.maximum(crowd, 1))
        owner = self._owners[filed[near]]  # twice the image's number, plus 1 for the mirrored
        votes = np.bincount(owner, weight * share[voter], minlength=2 * self.images)
        return votes.reshape(self.images, 2).max(axis=1) / share.sum()


def index(descriptors: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """File the reference images' descriptors.

    Args:
        descriptors: uint8 [n, 128], image after image.
        counts: int [images], how many are whose.

    Returns:
        centres float32 [2, k, 64], starts int64 [k * k + 1]: where each word begins; owners int32
        [2 n]: twice the image's number, plus 1 for the mirrored; bits uint64 [2 n].
    """
    centres = _fit(descriptors)
    owner = np.repeat(2 * np.arange(len(counts), dtype=np.int32), counts)
    pieces = []
    for mirrored in (False, True):
        for start in range(0, len(descriptors), CHUNK):
            chunk = descriptors[start : start + CHUNK]
            filed = _file(mirrored_descriptors(chunk) if mirrored else chunk, centres)
            pieces.append((*filed, owner[start : start + CHUNK] + np.int32(mirrored)))
    if not pieces:
        pieces = [(np.zeros(0, np.int64), np.zeros(0, np.uint64), owner)]
    word, bits, owners = (np.concatenate(part) for part in zip(*pieces, strict=True))
    order = np.lexsort((owners, word))  # word after word
    starts = np.searchsorted(word[order], np.arange(centres.shape[1] ** 2 + 1))
    return {"centres": centres, "starts": starts, "owners": owners[order], "bits": bits[order]}


def _fit(descriptors: np.ndarray) -> np.ndarray:
    """Words of the first and the second half: float32 [2, k, 64] of whole numbers, k a power of 2,
    so many that k * k words have about `PER_WORD` members each."""
    wanted = np.sqrt(max(1, 2 * len(descriptors) / PER_WORD))
    count = min(2 ** int(np.ceil(np.log2(wanted))), MAX_HALF_WORDS)
    sample = descriptors[evenly(len(descriptors), FIT_DESCRIPTORS)]
    sample = np.concatenate([sample, mirrored_descriptors(sample)]).astype(np.float32)
    return np.stack([_k_means(sample[:, :64], count), _k_means(sample[:, 64:], count)])


def _k_means(sample: np.ndarray, count: int) -> np.ndarray:
    """Lloyd 1982, from an even choice of the sample; centres rounded to whole numbers, so that all
    distances are exact and every machine finds the same ones. float32 [count, d]."""
    if not len(sample):
        return np.zeros((count, sample.shape[1]), np.float32)
    centres = np.ascontiguousarray(sample[np.arange(count) * len(sample) // count])
    for _ in range(ROUNDS):
        member = _nearest(sample, centres)  # [n]
        order = np.argsort(member, kind="stable")
        filled, first = np.unique(member[order], return_index=True)
        # Sums of whole numbers in float64 are exact in any order; a centre without members stays.
        sums = np.add.reduceat(sample[order], first, axis=0, dtype=np.float64)
        sizes = np.diff(np.append(first, len(sample)))
        centres[filled] = np.rint(sums / sizes[:, None])
    return centres


def _nearest(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Number of the nearest of centres [k, d] for each of vectors [n, d]; the first, if several."""
    squares = (centres**2).sum(axis=1)  # |v - c|^2 without |v|^2, the same for all centres
    steps = range(0, len(vectors), CHUNK // 10)
    pieces = [vectors[i : i + CHUNK // 10] @ (-2 * centres.T) + squares for i in steps]
    return np.concatenate([piece.argmin(axis=1) for piece in pieces])


def _file(descriptors: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Word, int64 [n], and bits, uint64 [n], of descriptors uint8 [n, 128]."""
    vectors = descriptors.astype(np.float32)
    first, second = (
        _nearest(half, part)
        for half, part in zip((vectors[:, :64], vectors[:, 64:]), centres, strict=True)
    )
    # [n, 128]: where in its word a descriptor lies; its bits are the sides of 64 planes
    rest = vectors - np.concatenate([centres[0][first], centres[1][second]], axis=1)
    signs = np.packbits(rest @ _directions() > 0, axis=1)
    return first * centres.shape[1] + second, signs.view(np.uint64)[:, 0]


@functools.cache
def _directions() -> np.ndarray:
    """64 orthogonal directions of -1 and 1, float32 [128, 64]: columns of Sylvester's Hadamard
    matrix, where the paper has random ones."""
    row, column = np.arange(128, dtype=np.uint8)[:, None], np.arange(64, 128, dtype=np.uint8)
    return 1 - 2 * (np.bitwise_count(row & column) % 2).astype(np.float32)
