"""The gradients of a batch: computed here, or shared among the workers of a cluster."""

from __future__ import annotations

import copy
import importlib
import itertools
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
    model.backward_parameters(loss.backward())
    return Outcome(value, right_classes(prediction, y))


class _Share(NamedTuple):
    """What a share of a batch, or several together, adds to the mean over the batch; gradients and buffers weighted."""

    outcome: Outcome
    gradients: list[Array | None]
    buffers: list[Array | None]
    generators: list[dict[str, Any]]
    """Their states, which are the same for every share."""


class Cluster:
    """`gradients`, computed by the workers of a `dask.distributed` cluster.

    A batch is cut into as many shares as there are workers at the start, and stays so when workers come or go: what is
    added up, neighbour to neighbour, does not depend on who computed it. The scheduler has all that a share is made
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
        found = self._computed(model, loss, x, y)
        for parameter, grad in zip(model.parameters(), found.gradients, strict=True):
            if grad is not None:
                parameter.accumulate(grad)
        for buffer, mean in zip(model.buffers(), found.buffers, strict=True):
            assert mean is not None
            buffer.value = mean.astype(buffer.value.dtype, copy=False)
        for (_, rng), state in zip(generators(model), found.generators, strict=True):
            init.restore_generator(rng, state)
        return found.outcome

    def _computed(self, model: Module, loss: Loss, x: Array, y: Array) -> _Share:
        config, bounds = importlib.import_module("dask").config, cuts(len(x), self.shares)
        # A batch and the network are handed to the scheduler on purpose, which warns of more than some megabytes.
        with config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):
            # A task hands the network on, so that a worker takes it from its neighbour, and a lost one is made again.
            network = self.client.submit(_handed_on, model, loss, pure=False)
            jobs = [
                self.client.submit(_share_of, network, x[a:b], y[a:b], (a, b, len(x)), pure=False)
                for a, b in itertools.pairwise(bounds)
            ]
        while len(jobs) > 1:  # neighbours, and theirs: most of it beside each other, and one share's worth comes here
            odd = jobs[-1:] if len(jobs) % 2 else []
            pairs = zip(jobs[::2], jobs[1::2], strict=False)
            jobs = [self.client.submit(_added, *pair, pure=False) for pair in pairs] + odd
        found: _Share = jobs[0].result()
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
    outcome, part = gradients(model, loss, x, y), len(x) / rows[-1]
    weight = 1.0 if getattr(loss, "reduction", "mean") == "sum" else part
    return _Share(
        Outcome(weight * outcome.loss, outcome.right),
        [_weighted(weight, parameter.grad) for parameter in model.parameters()],
        [_weighted(part, buffer.value) for buffer in model.buffers()],
        [init.generator_state(rng) for _, rng in generators(model)],
    )


def _weighted(weight: float, value: Array | None) -> Array | None:
    """A part of a mean; what counts, an integer, is the same in all shares."""
    if value is None or value.dtype.kind != "f":
        return value
    return weight * widened(namespace("value", value), value)


def _added(one: _Share, other: _Share) -> _Share:
    rights = (one.outcome.right, other.outcome.right)
    right = None if rights[0] is None or rights[1] is None else rights[0] + rights[1]
    return _Share(
        Outcome(one.outcome.loss + other.outcome.loss, right),
        [_sum(*pair) for pair in zip(one.gradients, other.gradients, strict=True)],
        [_sum(*pair) for pair in zip(one.buffers, other.buffers, strict=True)],
        one.generators,
    )


def _sum(one: Array | None, other: Array | None) -> Array | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other if one.dtype.kind == "f" else one
