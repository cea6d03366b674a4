"""npconv for compiled code: functions that may be called inside one's own ``numba.njit``, without going to Python.

Importing this room imports Numba.
"""

from __future__ import annotations

from npconv.kernels.jit import conv2d

__all__ = ["conv2d"]

conv2d.__doc__ = """Convolve images inside compiled code: `npconv.conv2d` as a function of Numba's.

It runs npconv's plain loops, without the interpreter's lock, on the thread that calls it; spread calls over threads
with `numba.prange`. From Python call `npconv.conv2d`, which has faster forms.

Parameters
----------
x : array of shape (N, C, H, W)
    float32 or float64.
w : array of shape (C_out, C / groups, rows, columns)
    Of the dtype of `x`.
bias : array of shape (C_out,), optional
stride, padding, dilation : int or tuple of two int
    Padding is zeros, as many on either side.
groups : int

Returns
-------
array of shape (N, C_out, H_out, W_out)
    In the dtype of `x`.

Raises
------
TypeError
    When the calling function is compiled, if an argument is not what is described here.
ValueError
    If the shapes do not fit together.

Examples
--------
>>> import numba
>>> import numpy as np
>>> from npconv.jit import conv2d
>>> @numba.njit
... def brightest(images, kernel):
...     return conv2d(images, kernel, None, 1, 1).max()
>>> brightest(np.ones((1, 1, 5, 5)), np.ones((1, 1, 3, 3)))
9.0
"""
