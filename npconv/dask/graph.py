"""The tasks of a computation: one for each block of a result, which is handed the pieces of chunks that it depends on.

Written down directly, because slicing, rechunking and concatenating axis by axis takes a dozen tasks a block and as
many copies. Here a chunk has at most one task more, which cuts its rims: what other blocks need of it.
"""

from __future__ import annotations

import bisect
import importlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from npconv.dask.blocks import Part

Place = tuple[int, ...]
Slices = tuple[slice, ...]


class _Cut(NamedTuple):
    """Elements ``first`` to ``last`` of a chunk, which a block needs along one axis."""

    chunk: int
    first: int
    last: int


@dataclass(frozen=True)
class _Rims:
    """What a task does that cuts the rims of a chunk, so that neither it is sent to other blocks nor kept for them."""

    cuts: list[Slices]

    def __call__(self, chunk: Any) -> list[Any]:
        return [np.array(chunk[cut]) for cut in self.cuts]


@dataclass(frozen=True)
class _Region:
    """How the part of an array that a block needs is put together; without a copy if it is one piece.

    A piece is a rim of a number, or a cut of a chunk, or, where neither is said, a chunk.
    """

    sizes: tuple[tuple[int, ...], ...]
    pieces: list[tuple[int | None, Slices | None]]

    def __call__(self, found: list[Any]) -> Any:
        values = [
            value[rim] if rim is not None else value if cut is None else value[cut]
            for value, (rim, cut) in zip(found, self.pieces, strict=True)
        ]
        if len(values) == 1:
            return values[0]
        region = np.empty(tuple(map(sum, self.sizes)), values[0].dtype)
        spans = [
            [slice(*pair) for pair in itertools.pairwise((0, *itertools.accumulate(sizes)))] for sizes in self.sizes
        ]
        for place, value in zip(itertools.product(*spans), values, strict=True):
            region[place] = value
        return region


@dataclass(frozen=True)
class _Block:
    """What a task does that computes one block of a result."""

    function: Callable[..., Any]
    parts: list[Part]
    regions: list[_Region]
    names: list[str]
    others: dict[str, Any]

    def __call__(self, pieces: list[list[Any]], aligned: list[Any], shared: list[Any]) -> Any:
        regions = [region(found) for region, found in zip(self.regions, pieces, strict=True)]
        named = dict(zip(self.names, shared, strict=True))
        return self.function(*regions, *aligned, self.parts, **named, **self.others)


def blockwise(
    function: Callable[..., Any],
    arrays: list[Any],
    axes: list[int],
    parts: list[list[Part]],
    chunks: Any,
    dtype: Any,
    *,
    aligned: tuple[Any, ...] = (),
    **others: Any,
) -> Any:
    """Call ``function(*regions, *aligned, parts, **others)`` for every block of a result.

    Parameters
    ----------
    function : callable
    arrays : list of dask array
        Of one shape. A block is handed the region of each that its parts along `axes`, and its chunk along the other
        axes, describe.
    axes : list of int
    parts : list of list of Part
        For each of `axes`, that of each block.
    chunks, dtype
        Of the result.
    aligned : tuple of dask array
        Those that a block is handed the chunk at its own place of.
    **others
        For the function; a delayed value is computed once.
    """
    da, dask = importlib.import_module("dask.array"), importlib.import_module("dask.base")
    graph = importlib.import_module("dask.highlevelgraph").HighLevelGraph
    shared = {name: value for name, value in others.items() if dask.is_dask_collection(value)}
    plain = {name: value for name, value in others.items() if name not in shared}
    keys = [value.key for value in shared.values()]
    token = dask.tokenize(function, [x.name for x in arrays], axes, parts, [y.name for y in aligned], keys, plain)
    name = f"{function.__name__.strip('_')}-{token}"
    tasks: dict[Any, Any] = {}
    gathered = []
    for n, x in enumerate(arrays):
        along = dict(zip(axes, parts, strict=True))
        cuts = [_cuts(x.chunks[axis], along.get(axis)) for axis in range(x.ndim)]
        rims, regions = _gather(x, cuts, f"rims-{n}-{token}")
        tasks |= rims
        gathered.append(regions)
    for place in gathered[0]:
        found = [regions[place] for regions in gathered]
        here = [along[place[axis]] for axis, along in zip(axes, parts, strict=True)]
        call = _Block(function, here, [region for region, _ in found], list(shared), plain)
        tasks[name, *place] = (call, [keys for _, keys in found], [(y.name, *place) for y in aligned], keys)
    layers = graph.from_collections(name, tasks, [*arrays, *aligned, *shared.values()])
    return da.Array(layers, name, chunks=tuple(chunks), meta=np.empty((0,) * len(chunks), dtype))


def _cuts(chunks: tuple[int, ...], parts: list[Part] | None) -> list[list[_Cut]]:
    """For each block along an axis, the chunks that it needs something of; without parts, its own."""
    if parts is None:
        return [[_Cut(n, 0, size)] for n, size in enumerate(chunks)]
    ends = list(itertools.accumulate(chunks))
    found = []
    for part in parts:
        first, last = bisect.bisect_right(ends, part.start), bisect.bisect_left(ends, part.stop)
        begins = [(n, ends[n] - chunks[n]) for n in range(first, last + 1) if chunks[n]]
        found.append([_Cut(n, max(part.start - at, 0), min(part.stop - at, chunks[n])) for n, at in begins])
    return found


def _gather(
    x: Any, cuts: list[list[list[_Cut]]], name: str
) -> tuple[dict[Any, Any], dict[Place, tuple[_Region, list[Any]]]]:
    """Tasks that cut rims, and for each block its region of an array and the keys of the pieces.

    A chunk is handed to the block that needs most of it; to the others as well, unless what they need is little.
    """
    places = list(itertools.product(*(range(len(along)) for along in cuts)))
    uses: dict[Place, list[tuple[int, Place, Slices]]] = {}
    for place in places:
        for pick in itertools.product(*(along[n] for along, n in zip(cuts, place, strict=True))):
            count = math.prod(cut.last - cut.first for cut in pick)
            cut = tuple(slice(cut.first, cut.last) for cut in pick)
            uses.setdefault(tuple(cut.chunk for cut in pick), []).append((count, place, cut))
    rims: dict[Any, Any] = {}
    found: dict[Place, tuple[list[Any], list[Any]]] = {place: ([], []) for place in places}
    for chunk, users in sorted(uses.items()):
        whole = tuple(slice(0, along[n]) for along, n in zip(x.chunks, chunk, strict=True))
        size = math.prod(part.stop for part in whole)
        home = max(users, key=lambda user: user[0])
        others = [user for user in users if user is not home]
        little = 0 < 2 * sum(count for count, _, _ in others) <= size
        order = {place: n for n, (_, place, _) in enumerate(others)} if little else {}
        if little:
            rims[name, *chunk] = (_Rims([cut for _, _, cut in others]), (x.name, *chunk))
        for _, place, cut in users:
            keys, pieces = found[place]
            rim = order.get(place)
            keys.append((x.name if rim is None else name, *chunk))
            pieces.append((rim, None if rim is not None or cut == whole else cut))
    regions = {}
    for place, (keys, pieces) in found.items():
        sizes = tuple(
            tuple(cut.last - cut.first for cut in along[n]) for along, n in zip(cuts, place, strict=True)
        )  # fmt: skip
        regions[place] = _Region(sizes, pieces), keys
    return rims, regions
