"""`npconv.dask`: blocks of any chunks give what one call gives, and what a block is handed is no more than it needs."""

from __future__ import annotations

import numpy as np
import pytest

import npconv as nc
from npconv.dask.blocks import gathered, scattered

da = pytest.importorskip("dask.array")
nd = nc.dask


@pytest.fixture(autouse=True)
def in_this_thread():
    import dask

    with dask.config.set(scheduler="synchronous"):
        yield


def ints(rng, shape, dtype="f4"):
    return rng.integers(-3, 4, shape).astype(dtype)


def cut(rng, x):
    """The same array in chunks of any size."""
    return da.from_array(x, chunks=tuple(int(rng.integers(1, n + 1)) for n in x.shape))


def check(y, expected):
    """Assert that a dask array is what it says it is, and what is expected."""
    assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
    found = y.compute()
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(np.rint(found), np.rint(expected))


@pytest.mark.parametrize("seed", range(24))
def test_any_convolution_in_any_chunks(seed):
    rng = np.random.default_rng(seed)
    dims = 1 + seed % 2
    kernel, stride, dilation = (tuple(rng.integers(1, n, dims).tolist()) for n in (5, 4, 3))
    pad = tuple(map(tuple, rng.integers(0, 4, (dims, 2)).tolist()))
    size = tuple((k - 1) * d + int(n) for k, d, n in zip(kernel, dilation, rng.integers(4, 12, dims), strict=True))
    groups, layout = 1 + seed % 3 // 2, ("channels_first", "channels_last")[seed // 2 % 2]
    mode = ("zeros", "zeros", "reflect", "replicate", "circular")[seed % 5]
    shape = (2, 2 * groups, *size) if layout == "channels_first" else (2, *size, 2 * groups)
    x, w, bias = ints(rng, shape), ints(rng, (3 * groups, 2, *kernel)), ints(rng, 3 * groups)
    how = {"stride": stride, "padding": pad, "dilation": dilation, "groups": groups, "layout": layout}
    y = nc.conv(x, w, bias, padding_mode=mode, activation="relu", **how)
    check(nd.conv(cut(rng, x), w, bias, padding_mode=mode, activation="relu", **how), y)
    dy = ints(rng, y.shape)
    check(nd.conv_input_grad(cut(rng, dy), w, x.shape, **how), nc.conv_input_grad(dy, w, x.shape, **how))
    check(nd.conv_weight_grad(cut(rng, x), cut(rng, dy), w.shape, **how), nc.conv_weight_grad(x, dy, w.shape, **how))
    w, extra = ints(rng, (2 * groups, 3, *kernel)), tuple(max(s, d) - 1 for s, d in zip(stride, dilation, strict=True))
    arguments = (bias, stride, 1, extra, groups, dilation)
    check(
        nd.conv_transpose(cut(rng, x), w, *arguments, layout=layout),
        nc.conv_transpose(x, w, *arguments, layout=layout),
    )


@pytest.mark.parametrize("boundary", ["reflect", "mirror", "nearest", "wrap", "constant"])
@pytest.mark.parametrize("mode", ["same", "full", "valid"])
@pytest.mark.parametrize("function", ["correlate", "convolve"])
def test_filters_with_every_boundary(function, mode, boundary):
    rng = np.random.default_rng(0)
    x, w = ints(rng, (9, 3, 11), "f8"), ints(rng, (3, 4), "f8") + 5
    x[4, 1, 5] = np.nan
    how = {"mode": mode, "boundary": boundary, "cval": 2, "axes": (0, -1), "stride": (2, 1)}
    how["origin"] = (-1, 0) if mode == "same" else 0
    for policy in ("propagate", "omit"):
        y = getattr(nd, function)(cut(rng, x), w, nan_policy=policy, **how)
        expected = getattr(nc, function)(x, w, nan_policy=policy, **how)
        assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(y.compute(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("policy", ["omit", "interpolate"])
@pytest.mark.parametrize(("mode", "boundary"), [("same", "mirror"), ("valid", "wrap"), ("full", "constant")])
def test_missing_values_and_masks(policy, mode, boundary):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((14, 3, 15)).astype("f4"), rng.random((4, 3))
    mask = rng.random(x.shape) < 0.2
    x[2:4, 1, 5] = np.nan
    x[6:12, 0, 3:12] = np.nan  # more than the kernel reaches across
    how = {"mode": mode, "boundary": boundary, "cval": 0.5, "axes": (0, 2), "stride": (2, 1), "min_weight": 0.2}
    how["origin"] = (1, -1) if mode == "same" else 0
    for function in ("correlate", "convolve"):
        for missing, dtype in ((None, None), (mask, "f8")):
            given = {"nan_policy": policy, "dtype": dtype, **how}
            lazy = None if missing is None else da.from_array(missing, chunks=(14, 1, 6))
            found = getattr(nc, function)(da.from_array(x, chunks=(5, 2, 4)), w, mask=lazy, **given)
            expected = getattr(nc, function)(x, w, mask=missing, **given)
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
            np.testing.assert_allclose(found.compute(), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "w", "cval", "how"),
    [
        (np.arange(9, dtype="i2"), np.array([1, 2, 3], "i2"), 40_000, {}),  # wraps
        (np.arange(9, dtype="u8") << np.uint64(60), np.array([1, 1, 1], "u8"), 1, {"dtype": "f8"}),
        (np.arange(9), np.array([0.5, 0.25]), 0.5, {"mode": "full"}),
        (np.arange(9), np.array([0.5, 0.25]), np.nan, {"nan_policy": "omit"}),
        (np.arange(9), np.array([1, 3]), 0, {"nan_policy": "interpolate", "mask": np.arange(9) % 4 == 0}),
        (np.arange(9.0), np.array([1j, 2]), 3j, {}),
        (np.arange(9, dtype="f2"), np.array([0.3, 0.5]), 2, {"nan_policy": "interpolate"}),
    ],
)
def test_what_lies_beyond_the_edge_is_not_cut_to_the_dtype_of_the_array(x, w, cval, how):
    found = nc.correlate(da.from_array(x, chunks=4), w, boundary="constant", cval=cval, **how)
    expected = nc.correlate(x, w, boundary="constant", cval=cval, **how)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.compute(), expected)


def test_the_public_face_takes_dask_arrays_and_returns_them():
    rng = np.random.default_rng(0)
    x, w, bias = ints(rng, (2, 4, 9, 8)), ints(rng, (3, 4, 3, 2)), ints(rng, 3)
    lazy = cut(rng, x)
    check(nc.conv2d(lazy, w, bias, 2, activation="relu6"), nc.conv2d(x, w, bias, 2, activation="relu6"))
    check(nc.conv(x, da.from_array(w), bias), nc.conv(x, w, bias))
    t = w.swapaxes(0, 1)
    check(nc.conv_transpose2d(lazy, t, bias, activation="relu"), nc.conv_transpose2d(x, t, bias, activation="relu"))
    y = nc.conv(x, w)
    check(nc.conv_input_grad(cut(rng, y), w, x.shape), nc.conv_input_grad(y, w, x.shape))
    check(nc.conv_weight_grad(lazy, y, w.shape), nc.conv_weight_grad(x, y, w.shape))
    check(nc.max_pool(lazy, 2), nc.max_pool(x, 2))
    check(nc.avg_pool(lazy, 2, 1) * 4, nc.avg_pool(x, 2, 1) * 4)
    check(nc.convolve(lazy, w[0, 0], axes=(2, 3)), nc.convolve(x, w[0, 0], axes=(2, 3)))
    check(nc.convolve(lazy[:0], w[0, 0], axes=(2, 3)), x[:0])


def test_labels_of_dask_arrays_are_kept():
    xarray = pytest.importorskip("xarray")
    x = np.arange(60.0).reshape(6, 10)
    labelled = xarray.DataArray(da.from_array(x, chunks=4), {"t": np.arange(10) / 2}, ("s", "t"), "height")
    found = nc.correlate(labelled, np.ones(3), axes=1, mode="valid", stride=2)
    assert isinstance(found.data, da.Array)
    expected = nc.correlate(labelled.compute(), np.ones(3), axes=1, mode="valid", stride=2)
    xarray.testing.assert_identical(found.compute(), expected)


@pytest.mark.parametrize("function", ["max_pool", "avg_pool"])
@pytest.mark.parametrize(("size", "stride", "padding"), [(2, None, 0), (3, 1, ((1, 0), 1)), ((2, 3), (3, 2), (0, 1))])
def test_pooling(function, size, stride, padding):
    rng = np.random.default_rng(0)
    x = ints(rng, (2, 3, 12, 13))
    y = getattr(nd, function)(cut(rng, x), size, stride, padding).compute()
    np.testing.assert_array_equal(y, getattr(nc, function)(x, size, stride, padding))


def test_a_block_is_handed_exactly_what_it_needs():
    seen = []

    def load(block_info=None):
        (rows,) = block_info[None]["array-location"][2:]
        return np.arange(*rows, dtype="f8")[None, None]

    x = da.map_blocks(load, chunks=((1,), (1,), (100,) * 10), dtype="f8", meta=np.empty((0, 0, 0)))
    y = nd.conv(x, np.ones((1, 1, 5)), padding=2)
    original = nc.conv
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nc, "conv", lambda block, *a, **k: seen.append(block.shape[2]) or original(block, *a, **k))
        y.compute()
    assert sorted(seen) == [102, 102, *[104] * 8]
    assert y.chunks[2] == (100,) * 10


@pytest.mark.parametrize("spread", [gathered, scattered])
def test_parts_cover_the_result_and_lie_in_the_input(spread):
    for chunks in ((1,), (1, 1, 1, 1), (5, 1, 2), (7, 7)):
        for stride, reach, low in ((1, 0, 0), (1, 4, 2), (3, 1, 0), (2, 6, 6), (4, 0, 0)):
            n = sum(chunks)
            extent = n * stride + reach
            out = (n + 2 * low - reach - 1) // stride + 1 if spread is gathered else extent - 2 * low
            if out < 1 or (spread is gathered and n + 2 * low <= reach):
                continue
            parts = spread(chunks, out, stride, reach, low)
            assert [part.first for part in parts] == [0, *(part.last for part in parts[:-1])]
            assert parts[-1].last == out
            assert all(0 <= part.start < part.stop <= n and part.low >= 0 for part in parts)


def test_memory_mapped_files_and_zarr(tmp_path):
    rng = np.random.default_rng(0)
    x, w = ints(rng, (2, 3, 40, 30)), ints(rng, (4, 3, 3, 3))
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    lazy = nd.as_dask(mapped, chunks=(1, 3, 16, 16))
    assert not any(isinstance(value, np.ndarray) for value in dict(lazy.dask).values())
    check(nd.conv(lazy, w, padding=1), nc.conv(x, w, padding=1))
    check(nd.conv(nd.as_dask(mapped[1:, :, ::2], chunks=20), w), nc.conv(x[1:, :, ::2], w))
    zarr = pytest.importorskip("zarr")
    stored = zarr.create_array(store=str(tmp_path / "x.zarr"), shape=x.shape, chunks=(1, 2, 16, 16), dtype="f4")
    stored[...] = x
    check(nd.conv(stored, w, padding=1), nc.conv(x, w, padding=1))
    check(nd.correlate(stored, w[0, 0], axes=(2, 3)), nc.correlate(x, w[0, 0], axes=(2, 3)))


X, W = np.zeros((1, 2, 8, 8), "f4"), np.zeros((3, 2, 3, 3), "f4")
L = da.from_array(X)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: nd.conv(X, W[:, :1]), ValueError, "^x has 2 channels .*, but w of shape"),
        (lambda: nd.conv_input_grad(X, W, (1, 3, 9, 9)), ValueError, "^input_shape has 3 channels .*, but w of shape"),
        (lambda: nd.conv(X, W, algorithm="quick"), ValueError, "algorithm must be one of"),
        (lambda: nd.conv(X, np.ma.ones(W.shape)), TypeError, "w is a masked array"),
        (lambda: nd.conv(da.from_array(np.ma.ones(X.shape)), W), TypeError, "x is a masked array"),
        (lambda: nd.as_dask(np.ma.ones(3)), TypeError, "x is a masked array"),
        *(
            (lambda chunks=chunks: nd.as_dask(np.ones((4, 4)), chunks), ValueError, "^chunks must be what dask.array")
            for chunks in ("abc", (1, 2, 3), -5, 0, None, object())
        ),
        (lambda: nd.conv([1, 2], W), TypeError, "x must be an array of dask, NumPy or Zarr, got list"),
        (lambda: nd.conv(da.zeros(3)[da.zeros(3) > 0], W), ValueError, "x must have chunks of known sizes"),
        (lambda: nd.conv(X, W, np.zeros(2, "f4")), ValueError, r"bias must have shape \(3,\)"),
        (lambda: nd.conv(X, W, padding=9, padding_mode="reflect"), ValueError, "repeating it more than once"),
        (lambda: nd.conv(X[:0], W), ValueError, "without elements"),
        (lambda: nd.conv_input_grad(X, W, (1, 2, 9, 9)), ValueError, "dy must have shape"),
        (lambda: nd.conv_weight_grad(X, X, W.shape), ValueError, "dy must have shape"),
        (lambda: nd.conv_transpose(X, W.swapaxes(0, 1), padding="same"), ValueError, "padding must be given in num"),
        (
            lambda: nd.correlate(X, W[0, 0], nan_policy="interpolate", axes=(2, 3)),
            ValueError,
            "weights of w sum to zero",
        ),
        (lambda: nd.correlate(X[0, 0], W[0, 0], mask=X[0, 0] > 0), ValueError, "mask needs nan_policy 'omit' or"),
        (lambda: nd.correlate(X[0, 0], W[0, 0], nan_policy="omit", mask=X[0] > 0), ValueError, "mask must have shape"),
        (lambda: nc.conv2d(L, W, backend="numpy"), ValueError, "backend cannot be given for a dask array, got 'numpy'"),
        (lambda: nc.conv(L, [1]), TypeError, "w must be an array .*, got list"),
        (lambda: nd.conv(L, [1]), TypeError, "w must be an array of dask or NumPy, got list"),
        (lambda: nd.conv(L, W, 3), TypeError, "bias must be an array of dask or NumPy, got int"),
        (lambda: nd.correlate(L, W[0, 0], axes="ab"), TypeError, "axes must be an integer"),
        (lambda: nd.max_pool(L, 2, padding="same"), ValueError, "padding must be given in numbers"),
        (lambda: nc.conv(L[L[:, 0, 0, 0] > 0], W), ValueError, "must have chunks of known sizes"),
        (lambda: nc.avg_pool(L, 2, out=X[:, :, :4, :4]), ValueError, "out cannot be given for a dask array"),
        (
            lambda: nc.conv_weight_grad(L, L, (2, 2, 1, 1), padding_mode="reflect"),
            ValueError,
            "padding_mode cannot be given",
        ),
        (lambda: nc.conv1d(L, W), ValueError, "w must have 3 dimensions"),
        (lambda: nc.max_pool(L, 2, return_indices=True), ValueError, "return_indices cannot be given for a dask"),
        (lambda: nd.correlate(X, W[0, 0]), ValueError, "w must have one dimension for each filtered axis"),
        (lambda: nd.correlate(X, W[0, 0], axes=(2, 3), mode="some"), ValueError, "mode must be one of"),
        (lambda: nd.max_pool(X, 9), ValueError, "kernel"),
    ],
)
def test_what_cannot_be_done_is_an_error_before_anything_is_computed(call, error, words):
    with pytest.raises(error, match=words):
        call()
