"""A training step of whole networks against PyTorch: time and memory, on one core.

``taskset -c 1 python -m benchmarks.training`` takes steps here and in PyTorch, in processes of their own, in turn:
forward, cross-entropy, backward, one step of SGD with momentum. It prints medians, their ratio (*time of PyTorch / time
of npconv*, above 1 npconv is the faster one) and each process's largest memory beyond what it had before the first
of these steps. ``--profile NAME`` prints where npconv's step goes instead, ``--write`` keeps the table
in benchmarks/results/, from where the documentation takes it.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.tables import machine, stem, versions
from benchmarks.workers import ROOT

# Name, batch, side of the pictures.
CASES = {"mobilenet_v1": (16, 96), "resnet18": (16, 64)}
PEERS = ("npconv", "torch")


def pictures(name: str, batch: int | None = None) -> tuple[Any, Any]:
    usual, size = CASES[name]
    batch = usual if batch is None else batch
    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, 3, size, size), dtype=np.float32), rng.integers(0, 1000, batch)


def npconv_step(name: str, batch: int | None = None) -> Callable[[], float]:
    import npconv as nc

    nc.set_num_threads(1)
    model = getattr(nc.models, name)(rng=0)
    loss = nc.nn.CrossEntropyLoss()
    optimizer = nc.nn.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = pictures(name, batch)

    def step() -> float:
        optimizer.zero_grad()
        value = loss(model(x), y)
        model.backward_parameters(loss.backward())
        optimizer.step()
        return value

    return step


def torch_model(name: str) -> Any:
    """The same network of PyTorch's own layers, made by walking through npconv's."""
    import torch

    import npconv as nc

    class Sum(torch.nn.Module):
        def __init__(self, branches: list[Any]) -> None:
            super().__init__()
            self.branches = torch.nn.ModuleList(branches)

        def forward(self, x: Any) -> Any:
            first, *others = [branch(x) for branch in self.branches]
            for other in others:
                first = first + other
            return first

    def converted(layer: Any) -> Any:
        match layer:
            case nc.nn.Add():
                return Sum([converted(branch) for branch in layer])
            case nc.nn.Sequential():
                return torch.nn.Sequential(*map(converted, layer))
            case nc.nn.Conv2d():
                return torch.nn.Conv2d(
                    layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
                    groups=layer.groups, bias=layer.bias is not None,
                )  # fmt: skip
            case nc.nn.BatchNorm2d():
                return torch.nn.BatchNorm2d(layer.num_features)
            case nc.nn.ReLU():
                return torch.nn.ReLU(inplace=True)
            case nc.nn.MaxPool2d():
                return torch.nn.MaxPool2d(layer.kernel_size, layer.stride, layer.padding)
            case nc.nn.GlobalAvgPool():
                return torch.nn.AdaptiveAvgPool2d(1)
            case nc.nn.Flatten():
                return torch.nn.Flatten()
            case nc.nn.Dropout():
                return torch.nn.Dropout(layer.p)
            case nc.nn.Linear():
                return torch.nn.Linear(layer.in_features, layer.out_features)
        raise NotImplementedError(type(layer).__name__)

    ours = getattr(nc.models, name)(rng=0)
    theirs = converted(ours)
    values = [torch.from_numpy(parameter.value) for parameter in ours.parameters()]
    for parameter, value in zip(theirs.parameters(), values, strict=True):
        parameter.data.copy_(value)
    return theirs


def torch_step(name: str, batch: int | None = None) -> Callable[[], float]:
    import torch

    torch.set_num_threads(1)
    model = torch_model(name)
    loss = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = map(torch.from_numpy, pictures(name, batch))

    def step() -> float:
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        optimizer.step()
        return float(value.detach())

    return step


def resident(peak: bool) -> int:
    """Memory of this process in bytes, now or at its largest since `forget_peak`."""
    with open("/proc/self/status") as status:  # noqa: PTH123
        field = "VmHWM" if peak else "VmRSS"
        return 1024 * int(next(line.split()[1] for line in status if line.startswith(field)))


def forget_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:  # noqa: PTH123
        file.write("5")


def work(peer: str, name: str) -> None:
    """Take steps as asked on standard input, a line each, and answer with seconds, loss and memory."""
    make = {"npconv": npconv_step, "torch": torch_step}[peer]
    # A step of the smallest batch first, so that code which is compiled or loaded is no memory of the step's.
    make(name, 2)()
    gc.collect()
    step = make(name)
    before = resident(peak=False)
    forget_peak()
    for _ in sys.stdin:
        start = time.perf_counter()
        value = step()
        seconds = time.perf_counter() - start
        print(json.dumps([seconds, value, resident(peak=True) - before]), flush=True)


def measure(name: str, steps: int, peers: tuple[str, ...] = PEERS) -> dict[str, tuple[float, float, float]]:
    """Median seconds, the first loss, and the largest memory of each peer, whose steps take turns."""
    commands = {peer: [sys.executable, "-m", "benchmarks.training", "--work", peer, "--models", name] for peer in peers}
    workers = {
        peer: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for peer, command in commands.items()
    }
    answers: dict[str, list[list[float]]] = {peer: [] for peer in peers}
    for _ in range(steps):
        for peer, worker in workers.items():
            worker.stdin.write("step\n")
            worker.stdin.flush()
            answers[peer].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    warm = 2
    return {
        peer: (statistics.median(a[0] for a in taken[warm:]), taken[0][1], max(a[2] for a in taken))
        for peer, taken in answers.items()
    }


def profile(name: str, steps: int = 5) -> None:
    """Print the time of each kind of layer, forward and backward, and of the optimiser."""
    import npconv as nc

    step = npconv_step(name)
    spent: dict[str, float] = {}

    def timed(cls: type, method: str) -> None:
        plain = getattr(cls, method)

        def wrapper(self: Any, *args: Any) -> Any:
            start = time.perf_counter()
            result = plain(self, *args)
            label = f"{type(self).__name__}.{method}"
            if isinstance(self, nc.nn.Conv):
                label += " depthwise" if self.groups > 1 else f" {self.kernel_size[0]}x{self.kernel_size[1]}"
            spent[label] = spent.get(label, 0.0) + time.perf_counter() - start
            return result

        setattr(cls, method, wrapper)

    for _ in range(2):
        step()
    for cls in (
        nc.nn.Conv,
        nc.nn.BatchNorm,
        nc.nn.ReLU,
        nc.nn.MaxPool,
        nc.nn.Linear,
        nc.nn.GlobalAvgPool,
        nc.nn.Dropout,
    ):
        timed(cls, "forward")
        timed(cls, "backward")
    timed(nc.nn.SGD, "step")
    start = time.perf_counter()
    for _ in range(steps):
        step()
    total = (time.perf_counter() - start) / steps
    for label, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"{label:32} {1e3 * seconds / steps:8.1f} ms {seconds / steps / total:6.1%}")
    print(f"{'step':32} {1e3 * total:8.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--steps", type=int, default=13, help="of each, the first two unmeasured")
    parser.add_argument("--profile", metavar="NAME", choices=list(CASES))
    parser.add_argument("--write", action="store_true", help="keep the table")
    parser.add_argument("--work", choices=PEERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work, options.models[0])
    if options.profile:
        return profile(options.profile)
    rows = []
    for name in options.models:
        batch, size = CASES[name]
        results = measure(name, options.steps)
        print(f"{name}, batch {batch}, {size}x{size}")
        for peer, (seconds, loss, memory) in results.items():
            print(f"  {peer:8} {1e3 * seconds:8.1f} ms  {memory / 1e6:8.1f} MB  first loss {loss:.4f}")
        ratio = results["torch"][0] / results["npconv"][0]
        print(f"  ratio    {ratio:8.2f}")
        cells = [f"`{name}`", f"{batch} x {size}x{size}", *(f"{1e3 * found[0]:.0f} ms" for found in results.values())]
        rows.append([*cells, f"{ratio:.2f}", *(f"{found[2] / 1e6:.0f} MB" for found in results.values())])
    if options.write:
        chosen = options.models if set(options.models) != set(CASES) else None
        write(rows, options.steps, stem("training", chosen))
    return None


HEAD = ["network", "batch", "npconv", "PyTorch", "ratio", "memory", "PyTorch"]


def write(rows: list[list[str]], steps: int, name: str) -> None:
    """Keep the table."""
    about = f"One core of an {machine()}, float32; {versions(['npconv', 'torch', 'numpy', 'numba'])}."
    note = f"Medians of {steps - 2} steps; memory is the largest beyond what the process had before these steps."
    lines = ["| " + " | ".join(row) + " |" for row in (HEAD, ["---", "---", *["---:"] * 5], *rows)]
    text = "\n\n".join(["# A training step", f"{about} {note}", "\n".join(lines)])
    (ROOT / "benchmarks" / "results" / f"{name}.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
