"""Launch plans of unfold, fold and max pooling: one thread an element that is written."""

from __future__ import annotations

from npconv.arrays import Array
from npconv.geometry import Window
from npconv.kernels.cuda.launch import (
    ELEMENTS,
    THREADS,
    Kernel,
    Launch,
    ceil_div,
    checked,
    element_name,
    index_type,
    offset,
    planar,
    span,
    steps_structure,
    window_structure,
)


def unfold(window: Window, x: Array, columns: Array, element: str | None = None) -> Launch:
    """Columns ``(N, C, taps, positions)`` of an image ``(N, C, *size)``."""
    return _launch("patches.cu", "unfold", window, element, {"x": x}, {"columns": columns})


def fold(window: Window, columns: Array, x: Array, element: str | None = None) -> Launch:
    """The adjoint of `unfold`."""
    return _launch("patches.cu", "fold", window, element, {"columns": columns}, {"x": x}, steps=True)


def max_pool(window: Window, x: Array, y: Array, winner: Array, element: str | None = None) -> Launch:
    """Fill `y` and, in int64, `winner`, which are left as they are where a window sees nothing."""
    checked("int64", winner=winner)
    return _launch("pooling.cu", "max_pool", window, element, {"x": x}, {"y": y}, after=(winner,))


def max_pool_grad(window: Window, dy: Array, winner: Array, dx: Array, element: str | None = None) -> Launch:
    """The gradient in the image, from what `max_pool` said who won."""
    checked("int64", winner=winner)
    return _launch("pooling.cu", "max_pool_grad", window, element, {"dy": dy}, {"dx": dx}, (winner,), steps=True)


def _launch(
    source: str, name: str, window: Window, element: str | None, read: dict[str, Array], written: dict[str, Array],
    between: tuple[Array, ...] = (), after: tuple[Array, ...] = (), steps: bool = False,
) -> Launch:  # fmt: skip
    """A launch of a thread per element of the array in `written`, with what else is read before or written after it."""
    (operand,), (result,) = read.values(), written.values()
    element = element_name(operand, element)
    checked(element, **read, **written)
    window = planar(window)
    index = index_type(result.size + THREADS, operand.size, span(window))
    defines = (("ELEMENT", ELEMENTS[element][0]), ("INDEX", index), ("AXES", window.ndim), ("THREADS", THREADS))
    planes = offset(index, operand.shape[0] * operand.shape[1])
    geometry = [window_structure(index, window), *([steps_structure(index, window)] if steps else [])]
    arguments = (operand, *between, result, *after, *geometry, planes)
    return Launch(Kernel(source, name, defines), ceil_div(result.size, THREADS), THREADS, arguments)
