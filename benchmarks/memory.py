"""Memory that a call takes beyond its operands and its result: ``python -m benchmarks.memory``, on Linux.

The limit is what the direct forms promise: a quarter of input, weights and output, or 32 MiB where that is more.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

from benchmarks.cases import Case
from benchmarks.layers import LAYERS, Layer, select
from benchmarks.peers import OURS
from benchmarks.tables import grid, machine, stem, versions
from benchmarks.workers import ROOT, Failed, Worker, pin

MIB = 2**20
RUNS = 3
FREE = 32 * MIB


def operands(layer: Layer) -> int:
    """Bytes of input, weights and output in float32."""
    return 4 * sum(map(math.prod, (layer.x_shape, layer.w_shape, layer.y_shape)))


def extra(worker: Worker, case: Case) -> tuple[str, int]:
    """The algorithm, and the bytes beyond the result of the most demanding of a few calls."""
    note, y = worker.ask("prepare", case)
    return note, max(worker.ask("memory", None) for _ in range(RUNS)) - y.nbytes


def row(workers: Sequence[Worker], layer: Layer, threads: int) -> list[str]:
    """One layer, each way of calling npconv; what is over the limit is bold."""
    limit = max(operands(layer) // 4, FREE)
    cells = []
    for worker in workers:
        algorithm, found = extra(worker, Case(layer, threads=threads))
        text = f"{max(found, 0) / MIB:.1f}"
        cells += [algorithm, f"**{text}**" if found > limit else text]
    return [layer.name, f"{operands(layer) / MIB:.1f}", f"{limit / MIB:.1f}", *cells]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.partition(":")[0])
    parser.add_argument("--layers", nargs="+", metavar="PATTERN", help="networks or parts of names, all by default")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    head = ["layer", "operands MiB", "limit MiB", *(cell for name in OURS for cell in (name, "extra MiB"))]
    try:
        pin(options.threads)
        layers = select(options.layers) if options.layers else LAYERS
        first, second = (Worker(name, options.threads) for name in OURS)
        with first, second:
            table = grid(head, [row((first, second), layer, options.threads) for layer in layers])
    except (Failed, ValueError) as error:
        sys.exit(str(error))
    print(table)
    path = ROOT / "benchmarks" / "results" / f"{stem('memory', options.layers)}.md"
    path.parent.mkdir(exist_ok=True)
    about = f"{machine()}; {versions(['npconv', 'numpy', 'numba'])}."
    path.write_text(f"# Memory beyond operands and result\n\n{about}\n\n{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
