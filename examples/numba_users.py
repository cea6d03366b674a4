"""npconv inside one's own compiled code: a filter bank, a decision and another filter, without going back to Python.

Run it: ``python examples/numba_users.py``
"""

from __future__ import annotations

import numba
import numpy as np

import npconv as nc
from npconv.jit import conv2d


@numba.njit(parallel=True)
def strongest_edges(images, bank):
    """For each image, the filter of the bank that answers most, and its answer smoothed."""
    chosen = np.empty(len(images), np.int64)
    smooth = np.empty((len(images), images.shape[2] - 4, images.shape[3] - 4), images.dtype)
    mean = np.full((1, 1, 3, 3), 1 / 9).astype(images.dtype)
    for n in numba.prange(len(images)):
        answers = np.abs(conv2d(images[n : n + 1], bank))
        chosen[n] = np.argmax(np.array([answers[0, o].sum() for o in range(len(bank))]))
        one = np.ascontiguousarray(answers[:, chosen[n] : chosen[n] + 1])
        smooth[n] = conv2d(one, mean)[0, 0]
    return chosen, smooth


sobel = nc.filters.sobel(0).astype(np.float32)
bank = np.stack([sobel, sobel.T])[:, None]
images = np.zeros((2, 1, 24, 24), np.float32)
images[0, 0, 12:] = 1  # an edge across
images[1, 0, :, 12:] = 1  # an edge down
chosen, smooth = strongest_edges(images, bank)
print("image 0:", ("across", "down")[chosen[0]], "- image 1:", ("across", "down")[chosen[1]])

expected = np.abs(nc.conv2d(images, bank))
expected = nc.conv2d(expected[np.arange(2), chosen][:, None], np.full((1, 1, 3, 3), 1 / 9, np.float32))[:, 0]
print("largest difference from npconv.conv2d:", "none" if np.allclose(smooth, expected, atol=1e-6) else "too large")
