"""Initial values of parameters, with PyTorch's defaults."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

from npconv.nn.arguments import Array

Rng: TypeAlias = int | np.random.Generator | None
"""A seed, a generator to draw on, or None for another result each time."""


def generator(rng: Rng) -> np.random.Generator:
    """Return the random number generator that `rng` stands for.

    Parameters
    ----------
    rng : int, numpy.random.Generator or None
        A generator is returned itself, so that layers built with the same one draw different numbers; layers built with
        the same seed draw the same.

    Raises
    ------
    TypeError, ValueError
        If it is none of these.

    Examples
    --------
    >>> import npconv as nc
    >>> rng = nc.nn.init.generator(0)
    >>> nc.nn.init.generator(rng) is rng
    True
    """
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"rng must be None, a seed (an integer of zero or more) or a numpy.random.Generator, got {rng!r:.60}"
        ) from None


def uniform(shape: tuple[int, ...], bound: float, *, rng: Rng = None, dtype: Any = "float32") -> Array:
    """Draw from the uniform distribution on ``[-bound, bound]``.

    Parameters
    ----------
    shape : tuple of int
    bound : float
    rng : int, numpy.random.Generator or None
    dtype : {"float32", "float64", "float16"}
        Drawn in float64 and rounded, so that one seed gives the same network in every dtype.

    Returns
    -------
    array
        A NumPy array.

    Raises
    ------
    TypeError
        If `dtype` is not one of these.

    Examples
    --------
    >>> import npconv as nc
    >>> w = nc.nn.init.uniform((8, 3, 5, 5), 0.1, rng=0)
    >>> w.dtype, bool(abs(w).max() <= 0.1)
    (dtype('float32'), True)
    """
    return generator(rng).uniform(-bound, bound, shape).astype(_real(dtype))


def constant(shape: tuple[int, ...], value: float, *, dtype: Any = "float32") -> Array:
    """Return an array of one value.

    Parameters
    ----------
    shape : tuple of int
    value : float
    dtype : {"float32", "float64", "float16", "int64"}

    Returns
    -------
    array
        A NumPy array.

    Raises
    ------
    TypeError
        If `dtype` is not one of these.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.nn.init.constant((3,), 1)
    array([1., 1., 1.], dtype=float32)
    """
    return np.full(shape, value, np.int64 if dtype == "int64" else _real(dtype))


def default_bound(weight_shape: tuple[int, ...]) -> float:
    """Bound of the uniform distribution that PyTorch draws weights and biases of its layers from, ``1 / sqrt(fan_in)``.

    It is the Kaiming bound ``sqrt(6 / ((1 + a**2) * fan_in))`` with ``a = sqrt(5)``; `fan_in` is the number of inputs
    that one output sees.

    Parameters
    ----------
    weight_shape : tuple of int
        ``(C_out, C_in / groups, *kernel)`` or ``(out_features, in_features)``.

    Returns
    -------
    float

    References
    ----------
    K. He, X. Zhang, S. Ren, J. Sun, *Delving Deep into Rectifiers*, arXiv:1502.01852; ``reset_parameters`` of PyTorch's
    layers.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.nn.init.default_bound((16, 4, 5, 5))
    0.1
    """
    return 1 / math.sqrt(math.prod(weight_shape[1:]))


def _real(dtype: Any) -> np.dtype[Any]:
    message = f"dtype must be float16, float32 or float64, got {dtype!r:.60}"
    try:
        known: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        raise TypeError(message) from None
    if dtype is None or known not in (np.float16, np.float32, np.float64):
        raise TypeError(message)
    return known


# --------------------------------------------------------------------------------------------------------------------
# Random numbers of a training: drawn on the host, so that they are the same on every device
# --------------------------------------------------------------------------------------------------------------------


def arange(count: int) -> Array:
    """Return the integers from 0 to below `count`, as NumPy's array."""
    return np.arange(count)


def of_step(seed: int, *position: int) -> np.random.Generator:
    """Return the generator for one place in a training, such as an epoch and a batch: the same for the same place."""
    return np.random.default_rng([seed, *position])


def is_generator(value: Any) -> bool:
    """Whether `value` is a generator of random numbers, whose state a checkpoint has to keep."""
    return isinstance(value, np.random.Generator)


def generator_state(rng: np.random.Generator) -> dict[str, Any]:
    """Return a generator's state as JSON can hold it."""
    state: dict[str, Any] = json.loads(json.dumps(rng.bit_generator.state, default=lambda array: array.tolist()))
    return state


def restore_generator(rng: np.random.Generator, state: dict[str, Any]) -> None:
    """Set a generator to a state that `generator_state` returned from one of its kind.

    Raises
    ------
    ValueError
        If it is of another kind, or no such state.
    """
    try:
        rng.bit_generator.state = _like(state, rng.bit_generator.state)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"the state of a generator does not fit {type(rng.bit_generator).__name__}: {error}") from None


class _Rows(np.random.Generator):
    """A generator that draws for a whole batch and returns what belongs to some of its samples."""

    rows: tuple[int, int, int]

    def random(self, size: Any = None, *more: Any, **others: Any) -> Any:
        """Draw as `numpy.random.Generator.random` does."""
        start, stop, samples = self.rows
        shape = size if isinstance(size, tuple) else (size or 1,)
        if size is None or not shape or shape[0] % (stop - start):
            return super().random(size, *more, **others)
        each = shape[0] // (stop - start)  # a layer may have made several rows of a sample
        return super().random((samples * each, *shape[1:]), *more, **others)[start * each : stop * each]


def draw_rows(modules: Iterable[tuple[str, Any]], start: int, stop: int, samples: int) -> None:
    """Have layers draw with ``rng.random(x.shape)`` what they would for a batch, of which they are given these rows."""
    made: dict[int, _Rows] = {}
    for _, module in modules:
        for name, rng in list(vars(module).items()):
            if is_generator(rng):
                rows = made.setdefault(id(rng), _Rows(rng.bit_generator))
                rows.rows = (start, stop, samples)
                setattr(module, name, rows)


def _like(value: Any, like: Any) -> Any:
    """Lists where arrays are wanted become arrays again."""
    if isinstance(like, dict):
        return {name: _like(value[name], entry) for name, entry in like.items()}
    return np.asarray(value, like.dtype) if isinstance(like, np.ndarray) else value
