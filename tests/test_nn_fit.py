"""Training: it learns, stops, and after a kill goes on to the same bits; it says why when it cannot."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npconv as nc
from npconv import nn

ROOT = Path(nc.__file__).parents[1]

# Everything that has a state: running statistics, dropout's generator, momentum, a schedule, random changes of data,
# early stopping. Killed, by a signal that cannot be caught, while the batch of that number is being fetched.
SCRIPT = """
import os, signal, sys
import numpy as np
import npconv as nc
from npconv import nn

folder, kill_at = sys.argv[1], int(sys.argv[2])
nc.set_backend("numpy")

class Noisy:
    count = 0
    def __init__(self, x, y):
        self.x, self.y = x, y
    def __len__(self):
        return len(self.y)
    def batch(self, indices, rng):
        Noisy.count += 1
        if Noisy.count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.x[indices] + rng.normal(0, 0.1, (len(indices), 6)), self.y[indices]

rng = np.random.default_rng(0)
x = rng.standard_normal((70, 6))
y = x[:, :3].argmax(axis=1)
model = nn.Sequential(
    nn.Linear(6, 16, rng=rng, dtype="float64"), nn.BatchNorm1d(16, dtype="float64"), nn.ReLU(), nn.Dropout(0.2, rng=1),
    nn.Linear(16, 3, rng=rng, dtype="float64"),
)
adam = nn.AdamW(model.parameters(), lr=0.02)
history = nn.fit(
    model, Noisy(x[:50], y[:50]), optimizer=adam, schedule=nn.CosineAnnealingLR(adam, 6), epochs=6, batch_size=7,
    seed=5, validation=(x[50:], y[50:]), patience=4, checkpoint=f"{folder}/checkpoint.npz", checkpoint_every=2,
    progress=False,
)
nn.save(model, f"{folder}/weights.npz")
del history.images_per_second
print(vars(history))
"""


def child(folder: Path, kill_at: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(kill_at)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    reference = child(whole)
    assert reference.returncode == 0, reference.stderr
    for batch in (4, 13):  # within an epoch, with batches behind the last checkpoint; then in a later epoch
        assert child(killed, batch).returncode == -signal.SIGKILL
        assert (killed / "checkpoint.npz").exists()
        assert not (killed / "weights.npz").exists()
    resumed = child(killed)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == reference.stdout
    with np.load(whole / "weights.npz") as expected, np.load(killed / "weights.npz") as got:
        assert expected.files == got.files
        for name in expected.files:
            np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
    assert sorted(entry.name for entry in killed.iterdir()) == ["checkpoint.npz", "weights.npz"], "nothing is left over"


def problem(seed: int = 0) -> tuple[Any, Any, nn.Sequential]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((41, 4)).astype(np.float32)
    return x, x.argmax(axis=1), nn.Sequential(nn.Linear(4, 8, rng=rng), nn.ReLU(), nn.Linear(8, 4, rng=rng))


class Stopping:
    """Data that a person interrupts at the batch of this number."""

    def __init__(self, x: Any, y: Any, at: int) -> None:
        self.x, self.y, self.left = x, y, at

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, indices: Any, rng: Any) -> tuple[Any, Any]:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return self.x[indices], self.y[indices]


def test_an_interrupted_training_goes_on_and_a_finished_one_has_nothing_to_do(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npz"
    options: dict[str, Any] = {"epochs": 3, "batch_size": 10, "progress": False}
    x, y, model = problem()
    expected = nn.fit(model, (x, y), **options)
    _, _, other = problem()
    with pytest.raises(KeyboardInterrupt):
        nn.fit(other, Stopping(x, y, 7), checkpoint=path, **options)
    _, _, third = problem(1)
    history = nn.fit(third, (x, y), checkpoint=path, **options)
    assert history.loss == expected.loss
    state = model.state_dict()
    assert all((value == state[name]).all() for name, value in third.state_dict().items())
    content = path.read_bytes()
    assert nn.fit(problem(2)[2], (x, y), checkpoint=path, **options).loss == expected.loss
    assert path.read_bytes() == content, "nothing was left to do"
    assert nn.fit(problem(2)[2], (x, y), checkpoint=path, **options | {"epochs": 4}).loss[:3] == expected.loss


def test_one_seed_makes_one_training_and_another_another() -> None:
    def losses(seed: int) -> list[float]:
        x, y, model = problem()
        return nn.fit(model, (x, y), epochs=2, seed=seed, progress=False).loss

    assert losses(1) == losses(1) != losses(2)


def test_every_sample_is_met_once_an_epoch_and_none_alone() -> None:
    met: list[Any] = []

    class Recorded(Stopping):
        def batch(self, indices: Any, rng: Any) -> tuple[Any, Any]:
            met.append(indices)
            return super().batch(indices, rng)

    x, y, model = problem()
    nn.fit(model, Recorded(x, y, -1), epochs=2, batch_size=10, progress=False)
    assert [len(indices) for indices in met] == [10, 10, 10, 11] * 2
    first, second = np.concatenate(met[:4]), np.concatenate(met[4:])
    assert sorted(first) == sorted(second) == list(range(41))
    assert (first != second).any()


def test_it_stops_early_and_keeps_the_best_weights(tmp_path: Path) -> None:
    x, y, model = problem()
    wrong = (x, (y + 1) % 4)  # the better the network, the worse it looks on these
    options: dict[str, Any] = {"epochs": 50, "patience": 3, "validation": wrong, "progress": False}
    options |= {"checkpoint": tmp_path / "checkpoint.npz"}
    sgd = nn.SGD(model.parameters(), lr=0.5)
    history = nn.fit(model, (x, y), optimizer=sgd, **options)
    assert history.stopped_early
    assert history.best_epoch is not None
    assert history.epochs == history.best_epoch + 4
    assert history.validation_loss[history.best_epoch] == min(history.validation_loss)
    got = nn.CrossEntropyLoss()(nn.predict(model, x), wrong[1])
    np.testing.assert_allclose(got, min(history.validation_loss), rtol=1e-5)
    again = problem()[2]
    assert nn.fit(again, (x, y), optimizer=nn.SGD(again.parameters(), lr=0.5), **options).stopped_early
    assert (again[0].weight.value == model[0].weight.value).all()


def test_targets_need_not_be_classes() -> None:
    x, _, model = problem()
    history = nn.fit(model, (x, x[:, ::-1].copy()), loss=nn.MSELoss(), epochs=200, progress=False)
    assert history.loss[-1] < history.loss[0] / 2
    assert history.accuracy == []


def test_the_bar_shows_how_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    x, y, model = problem()
    nn.fit(model, (x, y), validation=(x, y), epochs=2, progress=True)
    shown = capsys.readouterr().err
    for part in ("epoch 2/2", "loss=", "accuracy=", "validation accuracy=", "images/s", "41/41"):
        assert part in shown, part


def test_predict_runs_in_batches_and_leaves_the_mode_alone() -> None:
    x, _, model = problem()
    model = nn.Sequential(model, nn.Dropout(1.0))
    model[0].eval()
    np.testing.assert_allclose(nn.predict(model, x, batch_size=7), model[0](x), rtol=1e-5)
    assert [module.training for _, module in model.named_modules()] == [True, False, False, False, False, True]
    assert nn.predict(model, x[:0]).shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seed": 1}, "is of another training: seed was 0, now 1. Remove it to start anew"),
        ({"batch_size": 8}, "batch_size was 10, now 8"),
        ({"patience": 2}, "patience was None, now 2"),
        ({"lr": 0.5}, "lr was 0.1, now 0.5"),
        ({"momentum": 0.5}, r"optimizer was SGD\(momentum=0.9.*now SGD\(momentum=0.5"),
        ({"hidden": 9}, r"'0.weight' has shape \(8, 4\) where \(9, 4\) is expected"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    def train(epochs: int, hidden: int = 8, lr: float = 0.1, momentum: float = 0.9, **options: Any) -> nn.Sequential:
        x, y, _ = problem()
        model = nn.Sequential(nn.Linear(4, hidden, rng=epochs), nn.Dropout(0.1), nn.Linear(hidden, 4, rng=0))
        kept.append((model, model.state_dict()))
        sgd = nn.SGD(model.parameters(), lr=lr, momentum=momentum)
        nn.fit(model, (x, y), optimizer=sgd, epochs=epochs, checkpoint=tmp_path / "c.npz", progress=False, **options)
        return model

    kept: list[Any] = []
    train(1, batch_size=10)
    with pytest.raises(ValueError, match=match):
        train(2, **{"batch_size": 10, **change})
    model, before = kept[-1]
    assert all((value == before[name]).all() for name, value in model.state_dict().items())


@pytest.mark.parametrize("wrong", ["targets", "shapes", "numbers"])
def test_validation_that_does_not_fit_costs_no_epoch(wrong: str) -> None:
    x, y, model = problem()
    before = model.state_dict()
    other = {"targets": (x, y + 9), "shapes": (x[:, :-1], y), "numbers": (x * np.float32(np.nan), y)}[wrong]
    with pytest.raises(ValueError, match=r"^validation (does not fit the network or the loss: |must be finite)"):
        nn.fit(model, (x, y), validation=other, epochs=1, progress=False)
    assert all((value == before[name]).all() for name, value in model.state_dict().items())
    assert model.training


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    x, y, model = problem()
    nn.save(model, tmp_path / "weights.npz")
    with pytest.raises(ValueError, match="npz is not the checkpoint of a training"):
        nn.fit(model, (x, y), checkpoint=tmp_path / "weights.npz", progress=False)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"data": (np.zeros((3, 4)), np.zeros(2, int))}, ValueError, r"data must have one target for each sample"),
        ({"data": (np.zeros((0, 4)), np.zeros(0, int))}, ValueError, "data must not be empty"),
        ({"data": ([1], [2])}, TypeError, "samples of data must be a NumPy or CuPy array"),
        ({"data": 3}, TypeError, r"data must be a pair of arrays, or have __len__ and batch\(indices, rng\); got int"),
        ({"validation": np.zeros(3)}, TypeError, "validation must be a pair of arrays"),
        ({"data": (np.ma.masked_less(np.ones(4), 0),) * 2}, TypeError, "samples of data is a masked array, whose mask"),
        ({"data": (np.ones((4, 4)), np.full(4, np.inf))}, ValueError, "got targets that are not, in epoch 1, batch 1"),
        ({"epochs": 0}, ValueError, "epochs must be positive"),
        ({"batch_size": 0}, ValueError, "batch_size must be positive"),
        ({"seed": -1}, ValueError, "seed must be zero or more"),
        ({"patience": 0}, ValueError, "patience must be positive"),
        ({"checkpoint": "no/folder/c.npz"}, FileNotFoundError, "no/folder"),
        ({"checkpoint": "c.pt"}, ValueError, "path must end in .safetensors or .npz"),
        ({"model": 3}, TypeError, "model must be a Module, got int"),
        ({"checkpoint": 3}, TypeError, "checkpoint must be a string or a Path, got int"),
        ({"checkpoint_every": 2}, ValueError, "checkpoint_every is 2, but checkpoint names no file"),
        ({"loss": nn.MSELoss}, TypeError, "loss must be a Loss, such as"),
        ({"optimizer": "adam"}, TypeError, r"optimizer must be an Optimizer, such as .*got 'adam'"),
        ({"optimizer": nn.SGD([nn.Parameter(np.ones(1))], 1.0)}, ValueError, "optimizer must be over parameters of mo"),
        ({"progress": "no"}, TypeError, "progress must be True or False, got 'no'"),
        ({"schedule": nn.StepLR(nn.SGD([nn.Parameter(np.ones(1))], 1.0), 1)}, ValueError, "schedule must be an LRSch"),
    ],
)
def test_what_is_called_wrong_says_why(options: dict[str, Any], error: type[Exception], match: str) -> None:
    x, y, model = problem()
    arguments: dict[str, Any] = {"model": model, "data": (x, y), "progress": False, **options}
    with pytest.raises(error, match=match):
        nn.fit(**arguments)


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    x, y, model = problem()
    sgd = nn.SGD(model.parameters(), lr=1e38)
    with (
        np.errstate(all="ignore"),
        pytest.raises(RuntimeError, match=r"the loss is \w+ in epoch 1, batch \d: try a lower learning rate than"),
    ):
        nn.fit(model, (x, y), optimizer=sgd, batch_size=10, progress=False)


def test_samples_that_are_not_finite_are_no_fault_of_the_learning_rate() -> None:
    x, y, _ = problem()
    x[20, 1] = np.nan
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4, rng=0))
    before = model.state_dict()
    with pytest.raises(ValueError, match="data must be finite, got samples that are not, in epoch 1, batch 1"):
        nn.fit(model, (x, y), batch_size=41, progress=False)
    assert all((value == before[name]).all() for name, value in model.state_dict().items())


@pytest.mark.parametrize("mode", [True, False])
def test_an_interrupted_training_leaves_every_layer_in_the_mode_it_was_in(mode: bool) -> None:
    x, y, model = problem()
    model.train(mode)[1].train(not mode)
    with pytest.raises(KeyboardInterrupt):
        nn.fit(model, Stopping(x, y, at=2), batch_size=10, progress=False)
    assert [layer.training for layer in model] == [mode, not mode, mode]


def test_a_wrong_call_does_not_bring_a_checkpoint_into_the_network(tmp_path: Path) -> None:
    x, y, model = problem()
    nn.fit(model, (x, y), epochs=1, checkpoint=tmp_path / "c.npz", progress=False)
    _, _, model = problem(1)
    before = model.state_dict()
    with pytest.raises(ValueError, match="epochs must be positive"):
        nn.fit(model, (x, y), epochs=0, checkpoint=tmp_path / "c.npz", progress=False)
    assert all((value == before[name]).all() for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("batch", "error", "match"),
    [
        (None, TypeError, r"data.batch must return samples and targets, \(x, y\), got NoneType"),
        ((np.ones((3, 4)), np.zeros(2, int)), ValueError, r"data.batch must return one target for each sample"),
    ],
)
def test_a_data_set_that_returns_no_pair(batch: Any, error: type[Exception], match: str) -> None:
    class Wrong(Stopping):
        def batch(self, indices: Any, rng: Any) -> Any:
            return batch

    x, y, model = problem()
    with pytest.raises(error, match=match):
        nn.fit(model, Wrong(x, y, at=0), progress=False)


@pytest.mark.parametrize("terminal", [True, False])
def test_by_default_a_bar_is_for_a_terminal(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    x, y, model = problem()
    nn.fit(model, (x, y), epochs=1)
    assert ("epoch 1/1" in capsys.readouterr().err) == terminal


@pytest.mark.parametrize(
    ("arguments", "match"),
    [((3, np.ones((2, 4))), "model must be a Module, got int"), ((nn.ReLU(), 3.0), "data must be an array with samp")],
)
def test_predict_says_what_is_wrong(arguments: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        nn.predict(*arguments)


def test_without_tqdm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    x, y, model = problem()
    with pytest.raises(ImportError, match=r"pip install 'npconv\[train\]'"):
        nn.fit(model, (x, y), epochs=1, progress=True)
