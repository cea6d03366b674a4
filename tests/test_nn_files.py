"""Weights in files: what comes back, what a damaged file says, and that a file is whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npconv import nn


@pytest.fixture(params=[".npz", ".safetensors"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == ".safetensors":
        pytest.importorskip("safetensors")
    return request.param


def network(seed: int) -> nn.Sequential:
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        body=nn.ConvNorm(2, 4, 3, rng=rng, dtype="float64"),
        file=nn.Linear(3, 2, rng=rng),
        half=nn.BatchNorm(2, dtype="float16"),
    )


def test_what_is_saved_comes_back_to_the_bit(tmp_path: Path, kind: str) -> None:
    a, b = network(0), network(1)
    a.body[1].num_batches_tracked.value = np.array(7)
    # Not in C order and not in the machine's order of bytes: the file must not care.
    a.file.weight.value = np.asfortranarray(a.file.weight.value).astype(">f4")
    path = tmp_path / f"weights{kind}"
    nn.save(a, path, {"classes": "ä\n0"})
    assert nn.load(b, path) == {"classes": "ä\n0"}
    expected, got = a.state_dict(), b.state_dict()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value)
        assert got[name].dtype == value.dtype.newbyteorder("=")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name], "nothing is left over"


def test_pytorch_reads_the_file(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    ours, theirs = nn.Linear(3, 2, rng=0), torch.nn.Linear(3, 2)
    nn.save(ours, tmp_path / "linear.safetensors")
    theirs.load_state_dict(load_file(tmp_path / "linear.safetensors"))
    np.testing.assert_array_equal(theirs.weight.detach().numpy(), ours.weight.value)


def test_a_file_cut_off_anywhere_names_what_is_missing_and_changes_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"weights{kind}"
    nn.save(network(0), path)
    content, net = path.read_bytes(), network(1)
    before = net.state_dict()
    named = 0
    for length in {*range(0, len(content), 97), len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="weights") as caught:
            nn.load(net, path)
        named += any(repr(name) in str(caught.value) for name in before)
    assert named > 5, "once the header is there, the array is named"
    after = net.state_dict()
    assert all((after[name] == before[name]).all() for name in before)


def test_every_damaged_byte_is_noticed_or_harmless(tmp_path: Path, kind: str) -> None:
    """No flipped byte may end in anything but a ValueError, a TypeError, or arrays."""
    path = tmp_path / f"weights{kind}"
    nn.save(nn.Linear(1, 2, rng=0), path)
    content = path.read_bytes()
    for position in range(0, len(content), 3):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        try:
            nn.load(nn.Linear(1, 2), path)
        except (ValueError, TypeError) as error:
            assert "weights" in str(error)  # noqa: PT017 (some bytes are data and give no error)


@pytest.mark.parametrize("content", [b"", b"PK", b"not a file of weights" * 9, b"\x80\x04\x95"])
def test_another_file_is_refused(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / f"weights{kind}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights{kind} cannot be read as"):
        nn.load(network(0), path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        nn.load(network(0), path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, kind: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"there is no folder .*nowhere for the file weights{kind}"):
        nn.save(network(0), tmp_path / "nowhere" / f"weights{kind}")


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    np.savez(path, weight=np.array([object()]), bias=np.zeros(2))
    with pytest.raises(ValueError, match=r"'weight' in .*weights.npz cannot be read as npz: Object arrays"):
        nn.load(nn.Linear(1, 2), path)


def test_a_file_of_another_network_names_all_that_is_wrong(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"weights{kind}"
    nn.save(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), path)
    other = nn.Sequential(nn.Linear(4, 2), head=nn.Linear(2, 1))
    with pytest.raises(
        ValueError, match=r"weights.*'head.weight' is missing.*'1.weight' is unknown.*'0.weight' has shape"
    ):
        nn.load(other, path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.npz"
    nn.save(network(0), path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        nn.save(network(1), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((nn.ReLU(), "weights.pt"), ValueError, "path must end in .safetensors or .npz, got 'weights.pt'"),
        ((nn.ReLU(), 3), TypeError, "path must be a string or a Path, got int"),
        (({}, "weights.npz"), TypeError, "model must be a Module, got dict"),
        ((nn.ReLU(), "weights.npz", ["epochs"]), TypeError, r"metadata must map strings to strings, got \['epochs'\]"),
        ((nn.ReLU(), "weights.npz", {"epochs": 3}), TypeError, "metadata must map strings to strings, got 'epochs': 3"),
    ],
)
def test_what_is_called_wrong_says_why(arguments: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        nn.save(*arguments)


def test_without_safetensors_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'npconv\[train\]'"):
        nn.save(nn.ReLU(), tmp_path / "weights.safetensors")
