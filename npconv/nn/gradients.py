"""The gradients of a batch: computed here, or shared among the workers of a cluster."""

from __future__ import annotations

import copy
import importlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from npconv.nn import init
from npconv.nn.arguments import Array, namespace, widened
from npconv.nn.checkpoint import generators
from npconv.nn.history import right_classes
from npconv.nn.losses import Loss
from npconv.nn.module import Module


class Outcome(NamedTuple):
    """What a batch came to, whose gradients now lie in the parameters: its loss, and how many classes were right."""

    loss: float
    right: int | None


def gradients(model: Module, loss: Loss, x: Array, y: Array) -> Outcome:
    """Leave a batch's gradients in the parameters: all that a step does before the optimiser."""
    model.zero_grad()
    prediction = model(x)
    value = loss(prediction, y)
    model.backward(loss.backward())
    return Outcome(value, right_classes(prediction, y))


class _Share(NamedTuple):
    """What a worker made of its share of a batch, and what its network has become in doing so."""

    outcome: Outcome
    gradients: list[Array | None]
    buffers: list[Array]
    generators: list[dict[str, Any]]


class Cluster:
    """`gradients`, computed by the workers of a `dask.distributed` cluster.

    A batch is cut into as many shares as there are workers at the start, and stays so when workers come or go: what is
    added up, in the order of the shares, does not depend on who computed it. The scheduler has all that a share is made
    of, so it gives those of a worker that is lost to another one.

    Parameters
    ----------
    client : dask.distributed.Client

    Raises
    ------
    ImportError
        If distributed is missing.
    TypeError, ValueError
        If `client` is no such client, or an asynchronous one, or knows no worker.
    """

    def __init__(self, client: Any) -> None:
        try:
            distributed = importlib.import_module("distributed")
        except ImportError as error:
            raise ImportError(
                f"client needs the extra 'dask' ({error}); install it with: pip install 'npconv[dask]'"
            ) from None
        if not isinstance(client, distributed.Client):
            raise TypeError(f"client must be a dask.distributed.Client, got {type(client).__name__}")
        if client.asynchronous:
            raise ValueError("client must not be asynchronous: fit waits for what it computes")
        self.client = client
        self.shares = len(client.nthreads())
        if not self.shares:
            raise ValueError("client must have workers; its cluster has none yet (see Client.wait_for_workers)")

    def __call__(self, model: Module, loss: Loss, x: Array, y: Array) -> Outcome:
        """Leave a batch's gradients in the parameters; see `gradients`."""
        model.zero_grad()
        bounds = cuts(len(x), self.shares)
        found = self._computed(model, loss, [(x[a:b], y[a:b], (a, b, len(x))) for a, b in itertools.pairwise(bounds)])
        mean = getattr(loss, "reduction", "mean") != "sum"
        parts = [(stop - start) / len(x) for start, stop in itertools.pairwise(bounds)]
        weights = parts if mean else [1.0] * len(parts)
        for n, parameter in enumerate(model.parameters()):
            if (total := _sum(weights, [share.gradients[n] for share in found])) is not None:
                parameter.accumulate(total)
        for n, buffer in enumerate(model.buffers()):
            buffer.value = _mean(parts, [share.buffers[n] for share in found])
        for (_, rng), state in zip(generators(model), found[0].generators, strict=True):
            init.restore_generator(rng, state)
        rights = [share.outcome.right for share in found]
        value = sum(weight * share.outcome.loss for weight, share in zip(weights, found, strict=True))
        return Outcome(value, None if None in rights else sum(right or 0 for right in rights))

    def _computed(self, model: Module, loss: Loss, shares: list[tuple[Any, ...]]) -> list[_Share]:
        config = importlib.import_module("dask").config
        # A batch and the network are handed to the scheduler on purpose, which warns of more than some megabytes.
        with config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):
            # A task hands the network on, so that a worker takes it from its neighbour, and a lost one is made again.
            network = self.client.submit(_handed_on, model, loss, pure=False)
            jobs = [self.client.submit(_share_of, network, *share, pure=False) for share in shares]
        found: list[_Share] = self.client.gather(jobs)
        return found


def cuts(samples: int, shares: int) -> list[int]:
    """Where a batch is cut.

    No share has a single sample, which batch normalisation cannot do with, if the batch has more.

    >>> cuts(10, 3), cuts(5, 4), cuts(1, 2)
    ([0, 4, 7, 10], [0, 3, 5], [0, 1])
    """
    shares = max(1, min(shares, samples // 2))
    most, more = divmod(samples, shares)
    return [n * most + min(n, more) for n in range(shares + 1)]


def _handed_on(model: Module, loss: Loss) -> tuple[Module, Loss]:
    return model, loss


def _share_of(network: tuple[Module, Loss], x: Array, y: Array, rows: tuple[int, int, int]) -> _Share:
    """What a worker does: the gradients of rows ``start`` to ``stop`` of a batch of so many samples."""
    model, loss = copy.deepcopy(network)  # another share may be computed beside it, or again
    init.draw_rows(model.named_modules(), *rows)
    outcome = gradients(model, loss, x, y)
    return _Share(
        outcome,
        [parameter.grad for parameter in model.parameters()],
        [buffer.value for buffer in model.buffers()],
        [init.generator_state(rng) for _, rng in generators(model)],
    )


def _sum(weights: Sequence[float], values: list[Array | None]) -> Array | None:
    """The weighted sum, in the order of the shares; None if there is nothing."""
    total = None
    for weight, value in zip(weights, values, strict=True):
        if value is not None:
            term = weight * widened(namespace("grad", value), value)
            total = term if total is None else total + term
    return total


def _mean(weights: Sequence[float], values: list[Array]) -> Array:
    """The weighted mean of what shares made of a buffer; a number that counts is the same in all."""
    if values[0].dtype.kind != "f":
        return values[0]
    mean = _sum(weights, list(values))
    assert mean is not None
    return namespace("buffer", values[0]).asarray(mean, values[0].dtype)
