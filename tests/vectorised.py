"""`npconv.reference` with its loops over images, positions and channels written as array operations: some ten times as
fast, for comparisons by the hundred thousand. `test_randomly.py` holds it to the textbook's loops.
"""

from __future__ import annotations

import numpy as np

from npconv import reference


def conv(x, w, bias=None, *, stride, padding, dilation, groups):
    """As `reference.conv`."""
    dtype = np.result_type(x, w) if bias is None else np.result_type(x, w, bias)
    image = _grouped(_padded(x, padding, dtype), groups)
    weights = w.astype(image.dtype).reshape(groups, -1, *w.shape[1:])
    out = reference._output_size(image.shape[3:], w.shape[2:], stride, dilation)
    y = np.zeros((len(x), groups, weights.shape[1], *out), image.dtype)
    for tap, under in _taps(w.shape[2:], out, stride, dilation):
        y += np.einsum("goc,ngc...->ngo...", weights[:, :, :, *tap], image[:, :, :, *under])
    y = y.reshape(len(x), len(w), *out)
    if bias is not None:
        y += bias.astype(y.dtype).reshape(-1, *(1,) * len(out))
    return y.astype(dtype)


def conv_input_grad(dy, w, size, *, stride, padding, dilation, groups):
    """As `reference.conv_input_grad`."""
    dtype = np.result_type(dy, w)
    wide = reference._wide(dtype)
    slopes = _grouped(dy.astype(wide), groups)
    weights = np.conj(w).astype(wide).reshape(groups, -1, *w.shape[1:])
    whole = tuple(n + lo + hi for n, (lo, hi) in zip(size, padding, strict=True))
    dx = np.zeros((len(dy), groups, w.shape[1], *whole), wide)
    for tap, under in _taps(w.shape[2:], dy.shape[2:], stride, dilation):
        dx[:, :, :, *under] += np.einsum("goc,ngo...->ngc...", weights[:, :, :, *tap], slopes)
    inside = tuple(slice(lo, lo + n) for n, (lo, _) in zip(size, padding, strict=True))
    return dx.reshape(len(dy), -1, *whole)[:, :, *inside].astype(dtype)


def conv_weight_grad(x, dy, kernel, *, stride, padding, dilation, groups):
    """As `reference.conv_weight_grad`."""
    dtype = np.result_type(x, dy)
    image = _grouped(_padded(np.conj(x), padding, dtype), groups)
    slopes = _grouped(dy.astype(image.dtype), groups)
    dw = np.zeros((groups, slopes.shape[2], image.shape[2], *kernel), image.dtype)
    for tap, under in _taps(kernel, dy.shape[2:], stride, dilation):
        seen = image[:, :, :, *under]
        flat = (seen.reshape(*seen.shape[:3], -1), slopes.reshape(*slopes.shape[:3], -1))
        dw[:, :, :, *tap] = np.einsum("ngcp,ngop->goc", *flat)
    return dw.reshape(dy.shape[1], -1, *kernel).astype(dtype)


def _padded(x, padding, dtype):
    return np.pad(x.astype(reference._wide(dtype)), ((0, 0), (0, 0), *padding))


def _grouped(value, groups):
    return value.reshape(len(value), groups, -1, *value.shape[2:])


def _taps(kernel, out, stride, dilation):
    """Every kernel element, and what of the padded image lies under it."""
    for tap in np.ndindex(*kernel):
        first = [t * d for t, d in zip(tap, dilation, strict=True)]
        yield tap, tuple(slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(first, out, stride, strict=True))
