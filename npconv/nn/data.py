"""Where training takes its batches from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from npconv.nn import init
from npconv.nn.arguments import Array, check_unmasked, namespace


@runtime_checkable
class Dataset(Protocol):
    """What `fit` asks of data that is no pair of arrays, such as pictures that are read when their turn comes.

    Examples
    --------
    Digits that are moved by up to a pixel whenever they are looked at:

    >>> import numpy as np
    >>> class Moved:
    ...     def __init__(self, x, y):
    ...         self.x, self.y = x, y
    ...
    ...     def __len__(self):
    ...         return len(self.y)
    ...
    ...     def batch(self, indices, rng):
    ...         x = self.x[indices]
    ...         return (x if rng is None else np.roll(x, rng.integers(-1, 2), axis=-1)), self.y[indices]
    >>> import npconv as nc
    >>> isinstance(Moved(np.zeros((4, 1, 8, 8)), np.zeros(4, int)), nc.nn.Dataset)
    True
    """

    def __len__(self) -> int:
        """Samples."""
        ...

    def batch(self, indices: Array, rng: Any) -> tuple[Array, Array]:
        """Return the samples and targets of these indices.

        Parameters
        ----------
        indices : array
            Integers, one axis.
        rng : numpy.random.Generator or None
            What random changes are drawn from, another one for each batch of a training; None asks for no changes.
        """
        ...


class Arrays:
    """Samples and targets as two arrays, or others that are indexed like them and lie in a file."""

    def __init__(self, name: str, x: Array, y: Array) -> None:
        for part, value in (("samples", x), ("targets", y)):
            check_unmasked(f"{part} of {name}", value)
            if not hasattr(value, "shape"):
                namespace(f"{part} of {name}", value)
        if not x.shape or not y.shape or x.shape[0] != y.shape[0]:
            raise ValueError(f"{name} must have one target for each sample, got shapes {x.shape} and {y.shape}")
        self.x, self.y = x, y

    def __len__(self) -> int:
        return int(self.x.shape[0])

    def batch(self, indices: Array, rng: Any) -> tuple[Array, Array]:  # noqa: ARG002 (as the protocol says)
        """Return the samples and targets of these indices; see `Dataset.batch`."""
        return self.x[indices], self.y[indices]


def dataset(name: str, data: Any) -> Dataset:
    """Return `data`, a pair of arrays or a `Dataset`, as the latter; anything else and nothing at all are errors."""
    if isinstance(data, tuple | list) and len(data) == 2:
        data = Arrays(name, *data)
    if not isinstance(data, Dataset):
        raise TypeError(
            f"{name} must be a pair of arrays, or have __len__ and batch(indices, rng); got {type(data).__name__}"
        )
    if not len(data):
        raise ValueError(f"{name} must not be empty")
    return data


def batches(samples: int, size: int, order: Array | None = None) -> list[Array]:
    """Return the indices of each batch; one sample that would be left over alone joins the batch before.

    Batch normalisation cannot do with one sample.
    """
    order = init.arange(samples) if order is None else order
    starts = list(range(0, samples, size))
    if len(starts) > 1 and samples - starts[-1] == 1:
        starts.pop()
    return [order[start:stop] for start, stop in zip(starts, [*starts[1:], samples], strict=True)]


def evaluation_batches(name: str, data: Dataset, size: int, xp: Any) -> Iterator[tuple[Array, Array]]:
    """Yield all samples and targets in their order, as they are, on the network's device."""
    for indices in batches(len(data), size):
        yield fetched(name, data, indices, None, xp)


def fetched(name: str, data: Dataset, indices: Array, rng: Any, xp: Any, when: str = "") -> tuple[Array, Array]:
    """Return the samples and targets of these indices on the network's device.

    Anything but such a pair is an error, and so are numbers that are not finite: running statistics would never be rid
    of a NaN.
    """
    pair = data.batch(indices, rng)
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"{name}.batch must return samples and targets, (x, y), got {type(pair).__name__}")
    for part, value in zip(("samples", "targets"), pair, strict=True):
        check_unmasked(f"{part} of {name}", value)
    x, y = (xp.asarray(part) for part in pair)
    if not x.shape or x.shape[:1] != y.shape[:1]:
        raise ValueError(f"{name}.batch must return one target for each sample, got shapes {x.shape} and {y.shape}")
    for part, value in (("samples", x), ("targets", y)):
        if value.dtype.kind in "fc" and not xp.isfinite(value).all():
            raise ValueError(f"{name} must be finite, got {part} that are not{when}")
    return x, y
