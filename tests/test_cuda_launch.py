"""Launch plans and the loader: what is checked before a launch, what is compiled how often, what errors say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from fake_cupy import cupy, upload  # noqa: F401 - a fixture

import npconv as nc
from npconv.geometry import ConvSpec, Window
from npconv.kernels.cuda import depthwise, implicit_gemm, launch, loader
from npconv.kernels.cuda.launch import MOST_BLOCKS, Kernel, Launch

SPEC = ConvSpec.of((2, 4, 9, 8), (4, 1, 3, 3), 1, 1, 1, 4)
KERNEL = Kernel("depthwise.cu", "depthwise", (("AXES", 2),))


def arrays(spec=SPEC, dtype=np.float32):
    shapes = (spec.x_shape, spec.w_shape, spec.y_shape)
    return (upload(np.zeros(shape, dtype)) for shape in shapes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": 0}, "0 blocks"),
        ({"blocks": MOST_BLOCKS + 1}, "2147483648 blocks"),
        ({"threads": 0}, "0 threads"),
        ({"threads": 48}, "48 threads"),
        ({"threads": 1056}, "1056 threads"),
        ({"shared": 48 * 1024 + 1}, "49153 bytes of shared memory"),
    ],
)
def test_a_launch_beyond_a_gpu_is_refused(change, message) -> None:
    with pytest.raises(ValueError, match=f"depthwise would need .*{message}"):
        Launch(**{"kernel": KERNEL, "blocks": 1, "threads": 32, "arguments": (), **change})


@pytest.mark.parametrize("family", [depthwise, implicit_gemm])
def test_arrays_are_checked(family) -> None:
    x, w, y = arrays()
    with pytest.raises(ValueError, match="x must be in C order, got strides"):
        family.forward(SPEC, x[..., ::2], w, None, None, y)
    with pytest.raises(TypeError, match="w has dtype float64, the kernel computes in float32"):
        family.forward(SPEC, x, w.astype(float), None, None, y)
    with pytest.raises(TypeError, match="no CUDA kernel computes in int8"):
        family.forward(SPEC, *(a.astype(np.int8) for a in (x, w)), None, None, y)
    shifted = upload(np.zeros(x.nbytes + 1, np.uint8))[1:].view(np.float32).reshape(x.shape)
    with pytest.raises(ValueError, match="x is not aligned"):
        family.forward(SPEC, shifted, w, None, None, y)


def test_offsets_take_64_bits_where_an_extent_needs_them() -> None:
    assert launch.index_type(10, 2**31 - 2**20) == "int"
    assert launch.index_type(10, 2**31 - 2**20 + 1) == "int64"


def test_one_argument_decides_one_definition() -> None:
    x, w, y = arrays()
    defines = dict(depthwise.forward(SPEC, x, w, None, None, y).kernel.defines)
    assert defines["LOAD"] == defines["STORE"] == 4
    assert defines["SKEW"] == 3, "the segment begins one element before a vector"
    moved = upload(x, offset=1)
    defines = dict(depthwise.forward(SPEC, moved, w, None, None, y).kernel.defines)
    assert (defines["LOAD"], defines["SKEW"], defines["STORE"]) == (1, 0, 4)


@pytest.mark.parametrize("element", launch.ELEMENTS)
def test_patches_fit_the_registers(element: str) -> None:
    for kernel in ((3, 3), (5, 5), (7, 7), (31, 31), (1, 1), (1, 97), (8, 64)):
        window = Window.over((100, 100), kernel, 1, "full")
        patch = depthwise.patch_for(window, element)
        assert all(k % piece == 0 for k, piece in zip(kernel, patch.kernel, strict=True))
        assert patch.registers <= depthwise.MOST_REGISTERS


def test_tiles_fit_every_gpu() -> None:
    for size, tiles in implicit_gemm.TILES.items():
        element = {4: "float32", 8: "float64", 16: "complex128"}[size]
        for tile in tiles:
            assert tile.threads * tile.resident <= 1024
            for axes in (2, 3, 4):
                assert implicit_gemm.shared_bytes(tile, "forward", element, None, "int64", axes) <= launch.MOST_SHARED
    for size, tiles in implicit_gemm.TENSOR_TILES.items():
        element = {2: "float16", 4: "float32"}[size]
        for tile in tiles:
            assert tile.threads <= 1024
            for op in implicit_gemm.OPERATIONS:
                assert implicit_gemm.shared_bytes(tile, op, element, "tf32", "int64", 3) <= launch.MOST_SHARED


@pytest.mark.parametrize(
    ("extents", "expected"),
    [((512, 100000, 4608), (128, 128)), ((64, 50000, 576), (64, 128)), ((3, 200, 27), (16, 64))],
)
def test_a_tile_suits_its_product(extents, expected) -> None:
    tile = implicit_gemm.tile_for("float32", *extents[:2], 1)
    assert (tile.m, tile.n) == expected


def test_a_variant_is_compiled_once(cupy) -> None:  # noqa: F811
    made = []
    module = cupy.RawModule
    cupy.RawModule = lambda **how: made.append(how) or module(**how)
    for _ in range(3):
        x, w, y = arrays()
        loader.run(depthwise.forward(SPEC, x, w, None, None, y))
    assert len(made) == 1
    assert made[0]["options"][0] == "-std=c++17"
    assert "-DELEMENT=float" in made[0]["options"]
    cupy.cuda.runtime.getDevice = lambda: 1
    loader.function(depthwise.forward(SPEC, x, w, None, None, y).kernel)
    assert len(made) == 2, "another device has its own"


def test_an_array_on_another_device_is_refused(cupy) -> None:  # noqa: F811
    x, w, y = arrays()
    cupy.cuda.runtime.getDevice = lambda: 1
    with pytest.raises(ValueError, match=r"an array lives on GPU 0, but GPU 1 is the current one.*Device\(0\)"):
        loader.run(depthwise.forward(SPEC, x, w, None, None, y))


def test_the_memory_of_variants_is_bounded(cupy, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr(loader, "MOST", 2)
    cupy.RawModule = mock.MagicMock(side_effect=lambda **_: mock.MagicMock())
    kernels = [Kernel("depthwise.cu", "depthwise", (("AXES", i),)) for i in range(4)]
    first = loader.function(kernels[0])
    loader.function(kernels[1])
    assert loader.function(kernels[0]) is first
    loader.function(kernels[2])
    assert loader.function(kernels[0]) is first, "what was used last stays"
    assert len(loader._functions) == 2


@pytest.mark.parametrize(
    ("log", "advice"),
    [
        ('a.cu(3): catastrophic error: could not open source file "cuda_fp16.h"', r"npconv\[cuda13\]"),
        ("CuPy failed to load libnvrtc.so.12: OSError", r"npconv\[cuda13\]"),
        ("noise\nscalars.cuh(9): error: identifier is undefined\nnoise", "report"),
    ],
)
def test_a_failure_to_compile_is_one_clear_message(cupy, log, advice) -> None:  # noqa: F811
    def fail(**how):
        raise OSError(log)

    cupy.RawModule = fail
    with pytest.raises(loader.CompileError, match=f"(?s)the CUDA kernel depthwise .*{advice}") as error:
        nc.conv(upload(np.zeros((4, 9, 8), np.float32)), upload(np.zeros((4, 1, 3, 3), np.float32)), groups=4)
    assert "noise" not in str(error.value)
    assert isinstance(error.value.__cause__, OSError)


def test_sources_are_one_text_each() -> None:
    files = sorted(loader.FOLDER.glob("*.cu"))
    assert len(files) > 3
    for file in files:
        text = loader.source(file.name)
        assert "#include" not in text
        assert text.count("typedef ELEMENT Element;") == 1
        assert 'extern "C" __global__' in text
        assert "Not yet verified on a GPU" in re.sub(r"\s*\n//\s*", " ", text)


def test_instructions_have_one_place() -> None:
    for file in (*loader.FOLDER.glob("*.cu"), *loader.FOLDER.glob("*.cuh")):
        if file.name != "ptx.cuh":
            text = file.read_text(encoding="utf-8")
            assert "asm" not in text
            assert "__CUDA_ARCH__" not in text
            assert "atomic" not in text.replace("atomics", "")


def test_sources_are_in_the_wheel() -> None:
    # Hatchling takes all files of a package that git does not ignore.
    root = Path(nc.__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["npconv"]}
    assert not any("cu" in line for line in (root / ".gitignore").read_text(encoding="utf-8").split())
