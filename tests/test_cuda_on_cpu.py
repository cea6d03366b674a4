"""The emulation itself: what it must catch, it catches; a kernel with a fault in it does not pass."""

from __future__ import annotations

import os

import cuda_on_cpu
import numpy as np
import pytest
from cuda_on_cpu import KernelError, RawModule, schedule
from fake_cupy import download, installed, poisoned, upload
from test_cuda_kernels import DEPTHWISE, GEMM, Case

from npconv.kernels.cuda import depthwise, implicit_gemm, loader

THREADS = 64
COPY = "__shared__ float s[64]; int i = threadIdx.x; copy_async_element(s + i, {}); copy_async_commit();"


@pytest.fixture(autouse=True)
def _compiler():
    cuda_on_cpu.require_compiler()


def run(
    body: str, *arguments, parameters: str = "const float* x, float* y", blocks: int = 1, shared: int = 0, before=""
):
    code = f'{before}\nextern "C" __global__ void kernel({parameters}) {{\n{body}\n}}'
    RawModule(code=code).get_function("kernel")((blocks,), (THREADS,), arguments, shared_mem=shared)


def test_threads_exchange_through_shared_memory_and_warps() -> None:
    x, y = upload(np.arange(THREADS, dtype=np.float32)), poisoned(THREADS, np.float32)
    reverse = "__shared__ float s[64]; int i = threadIdx.x; s[i] = x[i]; __syncthreads(); y[i] = s[63 - i];"
    run(reverse, x, y)
    np.testing.assert_array_equal(download(y), np.arange(THREADS)[::-1])
    run("int i = threadIdx.x; y[i] = __shfl_xor_sync(0xffffffffu, x[i], 5);", x, y)
    np.testing.assert_array_equal(download(y), np.arange(THREADS) ^ 5)
    run("int i = threadIdx.x; y[i] = __shfl_down_sync(0xffffffffu, x[i], 4) + __shfl_sync(0xffffffffu, x[i], 2);", x, y)
    lanes = np.arange(THREADS)
    down = np.where(lanes % 32 + 4 < 32, lanes + 4, lanes)
    np.testing.assert_array_equal(download(y), down + lanes // 32 * 32 + 2)
    dynamic = (
        "DYNAMIC_SHARED(s); float* f = (float*)s; int i = threadIdx.x; f[i] = x[i]; __syncthreads(); y[i] = f[63 - i];"
    )
    run(dynamic, x, y, shared=4 * THREADS)
    np.testing.assert_array_equal(download(y), np.arange(THREADS)[::-1])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y[threadIdx.x + 1] = 1;", "outside"),
        ("y[int(threadIdx.x) - 1] = 1;", "outside"),
        ("y[threadIdx.x] = x[threadIdx.x + 100000];", "outside an array"),
        ("const_cast<float*>(x)[threadIdx.x] = 1;", "outside an array"),
        ("__shared__ float s[64]; s[threadIdx.x + 1] = 1;", "undefined behaviour"),
        ("DYNAMIC_SHARED(s); ((float*)s)[threadIdx.x] = 1;", "outside an array"),
        ("int big = 2147483647 - 63; y[0] = big + int(threadIdx.x) + 1;", "undefined behaviour"),
        ("int zero = threadIdx.x - threadIdx.x; y[0] = 1 / zero;", "undefined behaviour|division"),
        ("struct alignas(16) P { float v[4]; }; y[0] = ((const P*)(x + 1))->v[0];", "undefined behaviour"),
        ("if (threadIdx.x < 32) __syncthreads(); else\n__syncthreads();", "different barriers"),
        ("if (threadIdx.x < 31) y[0] = __shfl_xor_sync(0xffffffffu, 1.f, 1);", "has ended|deadlock"),
        ("y[0] = __shfl_xor_sync(0x0000ffffu, 1.f, 16);", "outside its mask"),
        (COPY.format("x + i + 100000, true") + "copy_async_wait<0>();", "outside an array"),
        ("__shared__ float s[20000]; s[0] = 1;", "bytes of shared memory"),
    ],
)  # fmt: skip
def test_faults_are_caught(body: str, message: str) -> None:
    x, y = upload(np.zeros(THREADS, np.float32)), poisoned(THREADS, np.float32)
    with pytest.raises(KernelError, match=message):
        run(body, x, y)
    run("y[threadIdx.x] = 2;", x, y)
    assert (download(y) == 2).all(), "the next launch is not harmed"


def test_arguments_must_be_what_the_kernel_takes() -> None:
    x, y = upload(np.zeros(THREADS, np.float32)), poisoned(THREADS, np.float32)
    with pytest.raises(KernelError, match="takes 2 arguments, got 1"):
        run("", x)
    with pytest.raises(KernelError, match="argument 1 has 8 bytes, the kernel takes 4"):
        run("", x, np.int64(3), parameters="const float* x, int n")
    with pytest.raises(AssertionError, match="CuPy would guess"):
        run("", x, 3, parameters="const float* x, int n")
    run("y[0] = x == nullptr;", None, y)
    assert download(y)[0] == 1


def test_a_copy_is_not_there_before_it_was_waited_for() -> None:
    copied = COPY.format("x + i, i % 2 == 0") + "{} __syncthreads(); y[i] = s[63 - i];"
    x, y = upload(np.ones(THREADS, np.float32)), poisoned(THREADS, np.float32)
    run(copied.format("copy_async_wait<0>();"), x, y)
    np.testing.assert_array_equal(download(y), np.arange(THREADS) % 2)
    run(copied.format("copy_async_wait<1>();"), x, y)
    assert np.isnan(download(y)).any()


def test_halves_are_converted_as_by_numpy() -> None:
    # Every half, and floats at, beside and between them.
    halves = np.arange(2**16, dtype=np.uint16)
    body = "for (int i = threadIdx.x; i < 65536; i += 64) { a[i] = half_to_float(h[i]); b[i] = float_to_half(f[i]); }"
    parameters = "const unsigned short* h, const float* f, float* a, unsigned short* b"
    with np.errstate(all="ignore"):
        exact = halves.view(np.float16).astype(np.float32)
        for given in (exact, np.nextafter(exact, np.float32(1)), (exact + np.roll(exact, -1)) / 2):
            wide, narrow = poisoned(2**16, np.float32), poisoned(2**16, np.uint16)
            run(body, upload(halves), upload(given), wide, narrow, parameters=parameters)
            np.testing.assert_array_equal(download(wide), exact)
            np.testing.assert_array_equal(download(narrow).view(np.float16), given.astype(np.float16))


def passes(case: Case) -> bool:
    """Whether a case gives the reference's answers under several schedules."""
    try:
        for order, seed in (("random", 0), ("descending", 1), ("random", 2)):
            with schedule(order, seed):
                case.check()
    except (AssertionError, KernelError):
        return False
    return True


FAULTS = {
    "implicit_gemm.cu": [
        ("  tabulate(0);\n  __syncthreads();", "  tabulate(0);"),
        ("    tabulate(slice + 1);\n    __syncthreads();", "    tabulate(slice + 1);"),
        ("    copy_async_wait<STAGES - 2>();\n", ""),
        ("copy_async_wait<STAGES - 2>", "copy_async_wait<STAGES - 1>"),
        ("next fetch overwrites.\n    __syncthreads();", "next fetch overwrites."),
        ("first_m + m < p.rows", "first_m + m <= p.rows"),
        ("if (to < 0) return;", ""),
        ("at < (OPERATION == INPUT_GRAD ? window.out[axis] : window.size[axis])", "at <= window.size[axis]"),
    ],
    "depthwise_weight_grad.cu": [
        ("  __syncthreads();\n", ""),
        ("lanes = 16", "lanes = 8"),
    ],
    "depthwise.cu": [
        ("if (at[H] + row >= window.out[H]) break;", ""),
        ("if (plane >= planes.batch * planes.channels) return;", ""),
    ],
}  # fmt: skip


ON_TENSOR_CORES = [
    ("    if (ahead < slices) settle(ahead);\n", ""),
    ("next fetch overwrites.\n    __syncthreads();", "next fetch overwrites."),
    ("warp_m + i * 16 + lane % 16", "warp_m + i * 16 + lane % 8"),
    ("if (MMA == F16) multiply", "if (MMA == F16 && threadIdx.x % 2 == 0) multiply"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong"), ON_TENSOR_CORES)
def test_a_fault_on_tensor_cores_fails(monkeypatch, right: str, wrong: str) -> None:
    original = loader.source
    assert original("implicit_gemm.cu").count(right) == 1
    monkeypatch.setattr(loader, "source", lambda name: original(name).replace(right, wrong))
    with installed():
        assert not passes(Case(GEMM["several blocks and shares"], "float16", implicit_gemm, products="float16"))


def test_float32_must_be_rounded_before_tensor_cores_see_it(monkeypatch) -> None:
    original = loader.source
    monkeypatch.setattr(loader, "source", lambda name: original(name).replace("= float_to_tf32(value);", "= words[i];"))
    with installed():
        case = Case(GEMM["several blocks and shares"], "float32", implicit_gemm, products="tf32")
        case.x, case.w = case.x / 3, case.w / 3
        with pytest.raises(KernelError, match="not a TF32"):
            case.forward()


@pytest.mark.parametrize(
    ("source", "right", "wrong"), [(source, *pair) for source, pairs in FAULTS.items() for pair in pairs]
)
def test_a_fault_in_a_kernel_fails(monkeypatch, source: str, right: str, wrong: str) -> None:
    case = (
        Case(GEMM["several blocks and shares"], "float32", implicit_gemm)
        if source == "implicit_gemm.cu"
        else Case(DEPTHWISE["more than one block"], "float32", depthwise)
    )
    original = loader.source
    assert original(source).count(right) == 1
    monkeypatch.setattr(loader, "source", lambda name: original(name).replace(right, wrong))
    with installed():
        assert not passes(case)


def test_without_a_compiler_tests_skip_but_not_in_ci(monkeypatch) -> None:
    monkeypatch.setattr(cuda_on_cpu, "COMPILER", None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception):
        cuda_on_cpu.require_compiler()
    monkeypatch.setitem(os.environ, "CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"g\+\+"):
        cuda_on_cpu.require_compiler()
