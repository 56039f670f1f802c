"""Images that look the same: by a hash of 64 bits, and then by their pixels.

Shapes: N images, P pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

Array = npt.NDArray[Any]

ROWS, COLUMNS = 8, 9  # of the miniature, each bit of whose hash compares two neighbours
MOST_BITS = 8  # that differ in copies saved anew, resized or a little brighter
MOST_GREY = 6.0  # grey levels by which their miniatures differ in the mean, but for brightness
LEAST_CONTRAST = 4.0  # grey levels; flatter images have a hash of noise
# An image is compared with so many that have a quarter of its bits: equal hashes come first.
NEIGHBOURS = 2000
_BITS = np.unpackbits(np.arange(1 << 16, dtype=">u2").view(np.uint8).reshape(-1, 2), axis=1).sum(1)


def miniature(image: Image) -> npt.NDArray[np.uint8]:
    """An image of any size as 8×9 grey pixels."""
    from PIL.Image import Resampling

    return np.asarray(image.convert("L").resize((COLUMNS, ROWS), Resampling.BOX))


def flat(miniatures: Array) -> Array:
    """Which of the miniatures N×8×9 show next to nothing, (N,) bool."""
    found: Array = miniatures.reshape(-1, ROWS * COLUMNS).std(axis=1) < LEAST_CONTRAST
    return found


def hashes(miniatures: Array) -> npt.NDArray[np.uint64]:
    """Of grey miniatures N×8×9 uint8: whether each pixel is darker than the one to its right."""
    rising = miniatures[:, :, 1:] > miniatures[:, :, :-1]
    return np.packbits(rising.reshape(-1, ROWS * (COLUMNS - 1)), axis=1).view(np.uint64)[:, 0]


def pairs(miniatures: Array) -> npt.NDArray[np.int64]:
    """The pairs of images that look the same, P×2, smaller index first, in order.

    Candidates agree in one quarter of the hash, as all do that differ in at most 3 bits.
    """
    used = np.flatnonzero(~flat(miniatures))
    codes = hashes(miniatures[used])
    grey = miniatures[used].reshape(-1, ROWS * COLUMNS).astype(np.float32)
    grey -= grey.mean(axis=1, keepdims=True)
    found = [np.empty((0, 2), dtype=np.int64)]
    for quarter in range(4):
        key = (codes >> np.uint64(16 * quarter)) & np.uint64(0xFFFF)
        order = np.lexsort((codes, key))
        begins = np.arange(len(order))
        for step in range(1, NEIGHBOURS + 1):
            begins = begins[begins + step < len(order)]
            begins = begins[key[order[begins]] == key[order[begins + step]]]
            if not begins.size:
                break
            one, other = order[begins], order[begins + step]
            close = _BITS[(codes[one] ^ codes[other]).view(np.uint16).reshape(-1, 4)].sum(1)
            kept = close <= MOST_BITS
            one, other = one[kept], other[kept]
            kept = np.abs(grey[one] - grey[other]).mean(axis=1) <= MOST_GREY
            both = np.sort(np.stack([one[kept], other[kept]], axis=1), axis=1)
            found.append(used[both])
    return np.unique(np.concatenate(found), axis=0)
