"""Hashes of images that stay nearly the same under recompression and resizing, and the search for close ones."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

BITS = 64
# Hashes of unrelated images differ in 32 bits on average.
MAX_DISTANCE = 7
_SIDE, _BLOCK = 32, 8
# Below this standard deviation, in grey levels, an image has no structure to tell it by.
_FLAT = 4.0
_BANDS, _BAND_BITS = 4, 16
# Least correlation of the thumbnails of near duplicates.
_ALIKE = 0.8
# Candidate pairs compared at once; bounds the memory.
_AT_ONCE = 1 << 22


def perceptual_hash(image: Image.Image) -> tuple[int, np.ndarray] | None:
    """An image's 64-bit hash (which of its low frequencies are above their median), and its grey thumbnail.

    Args:
        image: any size, mode RGB or L.

    Returns:
        The hash, below 2**64, and the thumbnail [64] uint8; None for an image without structure (one colour, or
        nearly), whose hash would be noise.

    Source: the DCT hash of Zauner, "Implementation and benchmarking of perceptual image hash functions" (2010).
    """
    grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=3.0)
    pixels = np.asarray(grey, np.float64)
    if pixels.std() < _FLAT:
        return None
    low = (_COSINES @ pixels @ _COSINES.T).ravel()
    thumbnail = pixels.reshape(_BLOCK, _SIDE // _BLOCK, _BLOCK, -1).mean(axis=(1, 3)).ravel()
    hashed = np.packbits(low > np.median(low)).view(">u8")[0]
    return int(hashed), thumbnail.astype(np.uint8)


def near_duplicates(
    hashes: np.ndarray, thumbnails: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs that are probably the same image: close hashes and like thumbnails.

    Signs of frequencies alone also agree between grids, noise and the like; the thumbnails' correlation tells most of
    these apart.

    Args:
        hashes: [N] uint64, all different.
        thumbnails: [N, 64] uint8.

    Returns:
        first, second, distance: as `close_pairs`.
    """
    first, second, distance = close_pairs(hashes)
    kept = np.zeros(len(first), bool)
    for begin in range(0, len(first), _AT_ONCE // BITS):
        part = slice(begin, begin + _AT_ONCE // BITS)
        kept[part] = _correlation(thumbnails[first[part]], thumbnails[second[part]]) > _ALIKE
    return first[kept], second[kept], distance[kept]


def close_pairs(
    hashes: np.ndarray, max_distance: int = MAX_DISTANCE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of hashes that differ in few bits, without comparing all pairs.

    Of 4 bands of 16 bits, two hashes that differ in at most 7 bits agree in one, or differ there in one bit: only such
    are compared.

    Args:
        hashes: [N] uint64, all different.
        max_distance: bits, 0 to 7.

    Returns:
        first, second: [M] int64 positions with first < second, each pair once, sorted.
        distance: [M] int64 bits.
    """
    if not 0 <= max_distance <= MAX_DISTANCE:
        raise ValueError(f"max_distance={max_distance} is not between 0 and {MAX_DISTANCE}.")
    found = [np.zeros(0, np.int64)]
    n = len(hashes)
    for band in range(_BANDS):
        keys = ((hashes >> np.uint64(band * _BAND_BITS)) & np.uint64(0xFFFF)).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        for flip in (0, *(1 << bit for bit in range(_BAND_BITS))):
            starts = np.searchsorted(ordered, keys ^ flip, side="left")
            ends = np.searchsorted(ordered, keys ^ flip, side="right")
            for one, other in _in_ranges(starts, ends):
                other = order[other]
                apart = np.bitwise_count(hashes[one] ^ hashes[other])
                kept = (one < other) & (apart <= max_distance)
                found.append(one[kept] * n + other[kept])
    pairs = np.unique(np.concatenate(found))
    first, second = pairs // max(n, 1), pairs % max(n, 1)
    return first, second, np.bitwise_count(hashes[first] ^ hashes[second]).astype(np.int64)


def _in_ranges(starts: np.ndarray, ends: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (i, j) with starts[i] <= j < ends[i], some at a time."""
    lengths = ends - starts
    total = np.cumsum(lengths)
    begin = 0
    while begin < len(starts):
        before = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, before + _AT_ONCE, side="right")))
        part = lengths[begin:end]
        one = np.repeat(np.arange(begin, end), part)
        # The position within its own range: a running count less the count where the range began.
        within = np.arange(len(one)) - np.repeat(total[begin:end] - part - before, part)
        yield one, starts[one] + within
        begin = end


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (each - each.mean(axis=1, keepdims=True) for each in (a.astype(np.float32), b))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.maximum(norms, 1e-6)


def _cosines() -> np.ndarray:
    """The first 8 rows after the constant one of the DCT-II of 32 numbers, [8, 32]."""
    frequency = np.arange(1, _BLOCK + 1)[:, None]
    return np.cos(np.pi * frequency * (2 * np.arange(_SIDE) + 1) / (2 * _SIDE))


_COSINES = _cosines()
