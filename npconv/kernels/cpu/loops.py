"""The compiled loops of the numba backend, for any number of spatial dimensions.

Contract, common to all kernels here:

- Arrays are in C order with their spatial axes flattened: images ``(N, C, S)`` over S spatial elements, weights
  ``(O, C/groups, T)`` over T taps, columns ``(N, C, T, P)`` over P window positions. One dtype throughout.
- ``geometry`` is int64 ``(6, D)``: size, kernel, stride, dilation, low padding and output size per axis. ``spans`` is
  int64 ``(kernel[-1], 2)``: the outputs of a row for which a tap of the last axis falls inside the input, first and
  one past.
- A kernel runs tasks ``start`` to ``stop``; a task owns the bytes it writes, writes all of them, and never reads what
  an output held before, unless said otherwise. All indices are 64-bit and every access stays inside its array.

The last axis is the vector axis: work is done a row at a time, and the leading axes are folded into a row number.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npconv.kernels.cpu.compile import compiled, compiled_reduction

# An index that is known not to be negative: without Numba's wrap-around of negative ones a loop vectorises, which
# doubles the speed of all that follow here.
at = np.uintp

RELU, RELU6, HARDSWISH = 1, 2, 3


@compiled
def input_row(row: int, tap: int, geometry: Any) -> Any:
    """Input row under output row `row` for tap `tap` of the leading axes, or -1 if that lies in the padding."""
    size, kernel, stride, dilation, low, out = geometry
    found, scale = 0, 1
    for axis in range(geometry.shape[1] - 2, -1, -1):
        position = (row % out[axis]) * stride[axis] + (tap % kernel[axis]) * dilation[axis] - low[axis]
        if position < 0 or position >= size[axis]:
            return -1
        found += position * scale
        scale *= size[axis]
        row //= out[axis]
        tap //= kernel[axis]
    return found


@compiled
def output_row(row: int, tap: int, geometry: Any) -> Any:
    """Output row that tap `tap` of the leading axes carries input row `row` to, or -1 if there is none."""
    size, kernel, stride, dilation, low, out = geometry
    found, scale = 0, 1
    for axis in range(geometry.shape[1] - 2, -1, -1):
        offset = row % size[axis] + low[axis] - (tap % kernel[axis]) * dilation[axis]
        if offset < 0 or offset % stride[axis] != 0 or offset // stride[axis] >= out[axis]:
            return -1
        found += offset // stride[axis] * scale
        scale *= out[axis]
        row //= size[axis]
        tap //= kernel[axis]
    return found


@compiled
def hardswish(row: Any) -> None:
    """Apply the activation in place."""
    # In the row's own dtype: with plain numbers the middle would be computed in float64.
    three, six = row.dtype.type(3), row.dtype.type(6)
    for j in range(row.shape[0]):
        if row[j].real <= -3:
            row[j] = 0
        elif row[j].real < 3:
            row[j] = row[j] * ((row[j] + three) / six)


@compiled
def activate(row: Any, activation: int) -> None:
    """Apply an activation in place. `.real` lets the same source compile for complex rows, which never have one."""
    if activation == RELU or activation == RELU6:
        for j in range(row.shape[0]):
            if row[j].real < 0:
                row[j] = 0
            elif activation == RELU6 and row[j].real > 6:
                row[j] = 6
    elif activation == HARDSWISH:
        hardswish(row)


@compiled
def largest_magnitude(bits: Any) -> Any:
    """The largest of floats given as integers, without their signs: their order is that of the numbers, NaN highest."""
    mask = ~(1 << (8 * bits.itemsize - 1))
    found = bits.dtype.type(0)
    for i in range(bits.shape[0]):
        found = max(found, bits[i] & bits.dtype.type(mask))
    return found


@compiled
def conv_forward(
    start: int, stop: int, x: Any, w: Any, bias: Any, y: Any, groups: int, activation: int, geometry: Any, spans: Any,
    stopped: Any,
) -> None:  # fmt: skip
    """``y = act(bias + x * w)``. A task is one output row: (n, output channel, row)."""
    last = geometry.shape[1] - 1
    size, kernel, stride, dilation, low, out = geometry[:, last]
    rows = y.shape[2] // out
    for task in range(start, stop):
        n, o, row = task // (rows * w.shape[0]), task // rows % w.shape[0], task % rows
        first_channel = o // (w.shape[0] // groups) * w.shape[1]
        target = y[n, o, row * out : (row + 1) * out]
        target[:] = bias[o]
        for lead in range(w.shape[2] // kernel):
            source_row = input_row(row, lead, geometry)
            if source_row < 0:
                continue
            for c in range(w.shape[1]):
                source = x[n, first_channel + c, source_row * size : (source_row + 1) * size]
                for k in range(kernel):
                    if stopped[0] != 0:
                        return
                    first, end = spans[k]
                    weight, offset = w[o, c, lead * kernel + k], k * dilation - low
                    if stride == 1:
                        for j in range(first, end):
                            target[at(j)] += weight * source[at(j + offset)]
                    else:
                        for j in range(first, end):
                            target[at(j)] += weight * source[at(j * stride + offset)]
        activate(target, activation)


@compiled
def conv_input_grad(
    start: int, stop: int, dy: Any, w: Any, dx: Any, groups: int, geometry: Any, spans: Any, stopped: Any
) -> None:
    """``dx``, the adjoint of the forward loop in x. A task is one input row: (n, input channel, row)."""
    last = geometry.shape[1] - 1
    size, kernel, stride, dilation, low, out = geometry[:, last]
    rows = dx.shape[2] // size
    outputs = w.shape[0] // groups
    for task in range(start, stop):
        n, channel, row = task // (rows * dx.shape[1]), task // rows % dx.shape[1], task % rows
        group, c = channel // w.shape[1], channel % w.shape[1]
        target = dx[n, channel, row * size : (row + 1) * size]
        target[:] = 0
        for lead in range(w.shape[2] // kernel):
            source_row = output_row(row, lead, geometry)
            if source_row < 0:
                continue
            for o in range(group * outputs, (group + 1) * outputs):
                source = dy[n, o, source_row * out : (source_row + 1) * out]
                for k in range(kernel):
                    if stopped[0] != 0:
                        return
                    first, end = spans[k]
                    weight, offset = w[o, c, lead * kernel + k], k * dilation - low
                    if stride == 1:
                        for j in range(first, end):
                            target[at(j + offset)] += weight * source[at(j)]
                    else:
                        for j in range(first, end):
                            target[at(j * stride + offset)] += weight * source[at(j)]


@compiled_reduction
def conv_weight_grad(
    start: int, stop: int, x: Any, dy: Any, dw: Any, groups: int, geometry: Any, spans: Any, stopped: Any
) -> None:
    """``dw``, the adjoint of the forward loop in w. A task is one kernel row: (o, channel, leading tap)."""
    last = geometry.shape[1] - 1
    size, kernel, stride, dilation, low, out = geometry[:, last]
    leads = dw.shape[2] // kernel
    for task in range(start, stop):
        o, c, lead = task // (leads * dw.shape[1]), task // leads % dw.shape[1], task % leads
        channel = o // (dw.shape[0] // groups) * dw.shape[1] + c
        target = dw[o, c, lead * kernel : (lead + 1) * kernel]
        target[:] = 0
        for n in range(x.shape[0]):
            for row in range(dy.shape[2] // out):
                source_row = input_row(row, lead, geometry)
                if source_row < 0:
                    continue
                source = x[n, channel, source_row * size : (source_row + 1) * size]
                grad = dy[n, o, row * out : (row + 1) * out]
                for k in range(kernel):
                    if stopped[0] != 0:
                        return
                    first, end = spans[k]
                    offset = k * dilation - low
                    if first < end:
                        total = grad[at(first)] * source[at(first * stride + offset)]
                        if stride == 1:
                            for j in range(first + 1, end):
                                total += grad[at(j)] * source[at(j + offset)]
                        else:
                            for j in range(first + 1, end):
                                total += grad[at(j)] * source[at(j * stride + offset)]
                        target[k] += total


@compiled
def matmul(start: int, stop: int, a: Any, b: Any, product: Any, stopped: Any) -> None:
    """``product[n, g] = a[g] @ b[n, g]``. A task is one row of one product."""
    groups, rows = product.shape[1], product.shape[2]
    for task in range(start, stop):
        n, g, i = task // (groups * rows), task // rows % groups, task % rows
        factors = a[g, i]
        target = product[n, g, i]
        target[:] = 0
        for k in range(factors.shape[0]):
            if stopped[0] != 0:
                return
            factor = factors[k]
            source = b[n, g, k]
            for j in range(target.shape[0]):
                target[j] += factor * source[j]


@compiled
def unfold(start: int, stop: int, x: Any, columns: Any, geometry: Any, spans: Any) -> None:
    """Columns of an image; what a tap reads in the padding is zero. A task is one (n, channel, tap)."""
    last = geometry.shape[1] - 1
    size, kernel, stride, dilation, low, out = geometry[:, last]
    for task in range(start, stop):
        taps = columns.shape[2]
        n, c, tap = task // (taps * x.shape[1]), task // taps % x.shape[1], task % taps
        first, end = spans[tap % kernel]
        offset = tap % kernel * dilation - low
        columns[n, c, tap, :] = 0
        for row in range(columns.shape[3] // out):
            source_row = input_row(row, tap // kernel, geometry)
            if source_row >= 0:
                source = x[n, c, source_row * size : (source_row + 1) * size]
                target = columns[n, c, tap, row * out : (row + 1) * out]
                for j in range(first, end):
                    target[at(j)] = source[at(j * stride + offset)]


@compiled
def fold(start: int, stop: int, columns: Any, x: Any, geometry: Any, spans: Any, stopped: Any) -> None:
    """The adjoint of `unfold`: columns summed back where they came from. A task is one plane: (n, channel)."""
    last = geometry.shape[1] - 1
    size, kernel, stride, dilation, low, out = geometry[:, last]
    for task in range(start, stop):
        n, c = task // x.shape[1], task % x.shape[1]
        x[n, c, :] = 0
        for tap in range(columns.shape[2]):
            if stopped[0] != 0:
                return
            first, end = spans[tap % kernel]
            offset = tap % kernel * dilation - low
            for row in range(columns.shape[3] // out):
                target_row = input_row(row, tap // kernel, geometry)
                if target_row >= 0:
                    target = x[n, c, target_row * size : (target_row + 1) * size]
                    source = columns[n, c, tap, row * out : (row + 1) * out]
                    for j in range(first, end):
                        target[at(j * stride + offset)] += source[at(j)]
