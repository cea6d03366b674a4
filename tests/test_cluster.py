"""On a real cluster of processes: blocks, and training to the numbers of one process, whoever is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npconv as nc
from npconv import nn
from npconv.nn import gradients, init

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.filterwarnings("ignore")  # what a cluster says when its workers die


@pytest.fixture(scope="module")
def client():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPCONV_BACKEND", "numpy")  # of the workers, which then have nothing to compile
        with (
            distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client


def test_blocks_are_computed_by_its_workers(client):
    da = pytest.importorskip("dask.array")
    rng = np.random.default_rng(0)
    x, w = rng.integers(-3, 4, (1, 2, 60, 50)), rng.integers(-3, 4, (3, 2, 3, 3))
    y = client.compute(nc.dask.conv(da.from_array(x, chunks=(1, 1, 25, 25)), w, padding=1)).result(timeout=120)
    np.testing.assert_array_equal(y, nc.conv(x, w, padding=1))


class Deadly(nn.Module):
    """Kills the process that computes it, where a file with the name of a step lies, which it removes before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def forward(self, x: Any) -> Any:
        try:
            (self.folder / "kill").unlink()
        except FileNotFoundError:
            return x
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    def backward(self, dy: Any) -> Any:
        return dy


class Watched:
    """Data that says when a batch is fetched."""

    def __init__(self, call: Any) -> None:
        self.count, self.call = 0, call
        self.x = np.random.default_rng(0).standard_normal((46, 2, 6, 6))

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Any, rng: Any) -> tuple[Any, Any]:
        if rng is not None:
            self.count += 1
            self.call(self.count)
        return self.x[indices], self.x[indices, 0, 0, :3].argmax(1)


def nothing(count: int) -> None:
    """Be told of a batch."""


def train(call: Any = nothing, *layers: nn.Module, norm: bool = False, **options: Any) -> Any:
    """The losses and the state after two epochs of four batches and a short one."""
    rng = np.random.default_rng(1)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, rng=rng, dtype="float64"),
        *((nn.BatchNorm2d(4, dtype="float64"),) if norm else ()),
        nn.ReLU(),
        nn.Dropout(0.3, rng=5),
        *layers,
        nn.Flatten(),
        nn.Linear(64, 3, rng=rng, dtype="float64"),
    )
    optimizer = nn.SGD(model.parameters(), lr=0.1, momentum=0.9)
    options = {"epochs": 2, "batch_size": 11, "progress": False} | options
    data = Watched(call)
    history = nn.fit(model, data, optimizer=optimizer, validation=data, **options)
    return history, model


def same(found: Any, expected: Any) -> None:
    """Assert equal bits."""
    assert (found[0].loss, found[0].validation_loss) == (expected[0].loss, expected[0].validation_loss)
    for name, value in expected[1].state_dict().items():
        np.testing.assert_array_equal(found[1].state_dict()[name], value, err_msg=name)


def test_a_cluster_trains_to_the_numbers_of_one_process(client):
    alone, found = train(), train(client=client)
    for name in ("loss", "validation_loss", "accuracy"):
        np.testing.assert_allclose(getattr(found[0], name), getattr(alone[0], name), rtol=1e-12)
    for name, value in alone[1].state_dict().items():
        np.testing.assert_allclose(found[1].state_dict()[name], value, rtol=0, atol=1e-13, err_msg=name)


def test_killed_workers_change_nothing(client, tmp_path):
    deadly = Deadly(tmp_path)
    expected = train(nothing, deadly, norm=True, client=client)
    killed = []

    def call(count: int) -> None:
        if count == 2:  # in the middle of a share, with the network in its memory
            (tmp_path / "kill").touch()
        if count == 7:  # between two steps
            killed.append(next(iter(client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    same(train(call, deadly, norm=True, client=client), expected)
    assert killed
    assert not (tmp_path / "kill").exists()


def test_a_checkpoint_goes_on_with_as_many_shares(client, tmp_path):
    def interrupted(count: int) -> None:
        if count == 8:
            raise KeyboardInterrupt

    options = {"norm": True, "client": client, "checkpoint": tmp_path / "run.npz", "checkpoint_every": 2}
    expected = train(norm=True, client=client)
    with pytest.raises(KeyboardInterrupt):
        train(interrupted, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "nthreads", lambda: {"one": 1})
        same(train(**options), expected)


def test_batch_normalisation_takes_a_share_for_the_batch(client):
    x, y = np.random.default_rng(0).standard_normal((9, 3)), np.arange(9) % 3
    layer = nn.BatchNorm1d(3, dtype="float64")
    outcome = gradients.Cluster(client)(layer.train(), nn.CrossEntropyLoss(), x, y)
    shares, losses, means = (slice(0, 5), slice(5, 9)), [], []
    for share in shares:
        part = nn.BatchNorm1d(3, dtype="float64").train()
        losses.append(nn.CrossEntropyLoss()(part(x[share]), y[share]))
        means.append(part.running_mean.value)
    np.testing.assert_allclose(outcome.loss, (5 * losses[0] + 4 * losses[1]) / 9, rtol=1e-14)
    np.testing.assert_allclose(layer.running_mean.value, (5 * means[0] + 4 * means[1]) / 9, rtol=1e-14)
    assert layer.num_batches_tracked.value == 1


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_that_are_sums_are_added(client, reduction):
    x, y = np.random.default_rng(0).standard_normal((2, 7, 3))
    one, other = (nn.Linear(3, 3, rng=0, dtype="float64") for _ in "ab")
    loss = nn.MSELoss(reduction=reduction)
    expected, found = gradients.gradients(one, loss, x, y), gradients.Cluster(client)(other, loss, x, y)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-14)
    np.testing.assert_allclose(other.weight.grad, one.weight.grad, rtol=1e-13)


@pytest.mark.parametrize("each", [1, 4])
def test_rows_of_a_draw(each):
    """Of a layer that draws for every sample, or for several rows of each."""
    whole = np.random.default_rng(3).random((7 * each, 5), dtype="float32")
    layer = nn.Dropout(rng=3)
    init.draw_rows(layer.named_modules(), 2, 5, 7)
    np.testing.assert_array_equal(layer._rng.random((3 * each, 5), dtype="float32"), whole[2 * each : 5 * each])


def test_errors_of_a_worker_and_of_the_client_come_through(client):
    x = np.zeros((8, 2))
    model = nn.Linear(2, 3, rng=0, dtype="float64")
    with pytest.raises(ValueError, match="labels must be from 0 to 2, got 7"):
        nn.fit(model, (x, np.full(8, 7)), client=client, progress=False)
    with pytest.raises(TypeError, match=r"client must be a dask.distributed.Client, got str"):
        nn.fit(model, (x, x), client="localhost", progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "nthreads", dict)
        with pytest.raises(ValueError, match="client must have workers"):
            nn.fit(model, (x, x), client=client, progress=False)
        patch.setitem(__import__("sys").modules, "distributed", None)
        with pytest.raises(ImportError, match=r"extra 'dask'.*pip install 'npconv\[dask\]'"):
            nn.fit(model, (x, x), client=client, progress=False)
