"""Arrays of more than 2**31 elements, which sparse files make cheap: every offset into them must be 64 bits wide."""

from __future__ import annotations

import numpy as np
import pytest

import npconv as nc

STEP = 2**14 + 1


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """Two channels of 2**30 elements and more, with numbers under every window and nothing elsewhere."""
    side = 2**15 + 4
    path = tmp_path_factory.mktemp("large") / "image"
    x = np.memmap(path, "f4", "w+", shape=(1, 3, side, side))
    assert x.size > 2**31
    rng = np.random.default_rng(0)
    for channel in range(3):
        for i in range(0, side - 2, STEP):
            x[0, channel, i : i + 3] = np.float32(channel + 1)
            for j in range(0, side - 2, STEP):
                x[0, channel, i : i + 3, j : j + 3] = rng.integers(-3, 4, (3, 3))
    yield x
    path.unlink()


def windows(x):
    """What a 3x3 kernel sees at a stride of `STEP`: ``(1, 3, n, n, 3, 3)``."""
    n = (x.shape[2] - 3) // STEP + 1
    return np.stack(
        [
            np.stack([x[:, :, i : i + 3, j : j + 3] for j in range(0, n * STEP, STEP)], 2)
            for i in range(0, n * STEP, STEP)
        ],
        2,
    )


@pytest.mark.parametrize("backend", nc.available_backends()[:2])
@pytest.mark.parametrize("algorithm", ["direct", "im2col"])
def test_forward_and_weight_gradient(image, algorithm, backend):
    rng, seen = np.random.default_rng(1), windows(image)
    w = rng.integers(-3, 4, (5, 3, 3, 3)).astype("f4")
    y = nc.conv(image, w, stride=STEP, algorithm=algorithm, backend=backend)
    np.testing.assert_array_equal(y, np.einsum("nchwij,ocij->nohw", seen, w))
    dw = nc.conv_weight_grad(image, y, w.shape, stride=STEP, algorithm=algorithm, backend=backend)
    np.testing.assert_array_equal(dw, np.einsum("nchwij,nohw->ocij", seen, y))


@pytest.mark.parametrize("backend", nc.available_backends()[:2])
def test_pooling_and_patches(image, backend):
    seen = windows(image)
    np.testing.assert_array_equal(nc.max_pool(image, 3, STEP, backend=backend), seen.max((-1, -2)))
    columns = nc.unfold(image, 3, stride=STEP, backend=backend)
    np.testing.assert_array_equal(columns, seen.transpose(0, 1, 4, 5, 2, 3).reshape(columns.shape))


def test_depthwise_and_one_long_row(image):
    w = np.arange(27.0, dtype="f4").reshape(3, 1, 3, 3)
    y = nc.conv(image, w, stride=STEP, groups=3)
    np.testing.assert_array_equal(np.rint(y), np.einsum("nchwij,cij->nchw", windows(image), w[:, 0]))
    row, taps = image.reshape(1, 1, -1), np.arange(1, 6, dtype="f4").reshape(1, 1, 5)
    step = 2**22 - 3
    found = nc.conv(row, taps, stride=step, algorithm="direct")
    expected = [float((row[0, 0, i : i + 5] * taps[0, 0]).sum()) for i in range(0, row.size - 4, step)]
    np.testing.assert_array_equal(found[0, 0], expected)
