"""A network to call: it makes a program for every shape of input that it meets, and keeps the last few."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

import npconv as nc
from npconv.inference.graph import Array, Graph
from npconv.inference.memory import Budget
from npconv.inference.operators import Where
from npconv.inference.program import Program, ShapesChangedError
from npconv.inference.regions import LAYOUTS
from npconv.inference.summary import Row, summarize

MAX_MEMORY = 4 * 2**30
"""Bytes that a model may hold where nobody says otherwise."""

PROGRAMS = 4
"""Shapes of input for which a model stays ready; the one that was used longest ago makes room."""

Spec = tuple[tuple[int | None, ...] | None, np.dtype[Any] | None]
"""Shape and dtype of an input; None stands for what may be anything."""


class Model:
    """A network ready for inference.

    Parameters
    ----------
    graph : Graph
    inputs : mapping of str to (shape, dtype), optional
        What each input must be; None stands for any size, shape or dtype.
    max_memory : int
        Bytes that may be held at a time: constants, the arenas of all programs, and what a run needs besides.
    backend : str, optional
        Defaults to `npconv.get_backend`, where ``"auto"`` is NumPy's arrays.
    layout : {"auto", "channels_first", "channels_last"}
        Of images between the steps; inputs and outputs stay as they are declared. ``"auto"`` is what is predicted to be
        faster, for every region of the network by itself; ``"channels_last"`` has every step run so that can.

    Attributes
    ----------
    inputs : dict of str to (shape, dtype)
    outputs : list of str
    graph : Graph

    Notes
    -----
    Several threads may call one model; runs for the same shape come one after the other, because they share memory.
    Results belong to the caller.

    Examples
    --------
    >>> import numpy as np
    >>> from npconv.inference import Graph, Model, Node
    >>> graph = Graph(["x"], ["y"], {"w": np.ones((3, 2))}, [Node("linear", ("x", "w"), ("y",))])
    >>> model = Model(graph, {"x": ((None, 3), np.dtype("float64"))})
    >>> model(np.array([[1.0, 2.0, 3.0]]))
    array([[6., 6.]])
    """

    def __init__(
        self,
        graph: Graph,
        inputs: Mapping[str, Spec] | None = None,
        *,
        max_memory: int = MAX_MEMORY,
        backend: str | None = None,
        layout: str = "auto",
    ) -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(map(repr, LAYOUTS))}, got {layout!r}")
        self.graph = graph
        self.inputs: dict[str, Spec] = {name: (inputs or {}).get(name, (None, None)) for name in graph.inputs}
        self.outputs = list(graph.outputs)
        self._layout = layout
        self._budget = Budget(max_memory)
        self._backend = nc.get_backend() if backend is None else backend
        self._xp = _namespace(self._backend)
        self._programs: OrderedDict[Any, Program] = OrderedDict()
        self._lock = threading.Lock()
        self._budget.take(sum(value.nbytes for value in graph.constants.values()), "the model's constants")

    def __reduce__(self) -> Any:
        """Refuse to be pickled or copied: packed weights suit one processor, and nodes may hold functions."""
        raise TypeError(
            "a npconv.inference.Model cannot be pickled or copied: save the network it was made of, "
            "and load or compile that where it is to run"
        )

    def __call__(self, *arrays: Array) -> Any:
        """Run on the inputs in their order.

        Parameters
        ----------
        *arrays : array
            One for each input.

        Returns
        -------
        array, or tuple of array
            The only output, or all of them.

        Raises
        ------
        ValueError, TypeError
            If an array is not what the input must be, or a node cannot run; the message names the input or the node.
        """
        if len(arrays) != len(self.inputs):
            raise TypeError(f"this model takes {len(self.inputs)} inputs ({', '.join(self.inputs)}), got {len(arrays)}")
        results = tuple(self.run(dict(zip(self.inputs, arrays, strict=True))).values())
        return results[0] if len(results) == 1 else results

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run on inputs by name.

        Parameters
        ----------
        feeds : mapping of str to array

        Returns
        -------
        dict of str to array
            All outputs.

        Raises
        ------
        ValueError, TypeError
            As for a call.
        """
        feeds = self._checked(feeds)
        key = tuple((value.shape, value.dtype) for value in feeds.values()), nc.get_num_threads()
        with self._lock:
            program = self._programs.get(key)
            if program is not None:
                self._programs.move_to_end(key)
        if program is not None:
            try:
                return program.run(feeds)
            except ShapesChangedError:
                pass
        with self._lock:
            return self._new_program(key, feeds)

    def prepare(self, batch: int = 1) -> None:
        """Make the model ready for inputs of the declared shapes, with `batch` for every size that is left open.

        Parameters
        ----------
        batch : int

        Raises
        ------
        ValueError, TypeError
            If an input is not declared, or a node cannot run.
        """
        self.run(self._zeros(batch))

    def summary(self, *shapes: tuple[int, ...]) -> tuple[Row, ...]:
        """Say what every step does, by running the model once on zeros.

        Steps are those that run: what was folded or fused is a part of another one. `npconv.cost.model` makes costs of
        them.

        Parameters
        ----------
        *shapes : tuple of int
            One for each input; by default the declared ones, with 1 for every size that is left open.

        Returns
        -------
        tuple of npconv.inference.summary.Row

        Raises
        ------
        ValueError, TypeError
            If the shapes are not what the inputs must be, or an input is not declared.

        Examples
        --------
        >>> import npconv as nc
        >>> net = nc.nn.Sequential(nc.nn.Conv2d(3, 8, 3, padding=1, rng=0), nc.nn.ReLU())
        >>> [(row.kind, row.macs) for row in nc.nn.compile(net, (3, 16, 16)).summary()]
        [('conv', 55296)]
        """
        if shapes and len(shapes) != len(self.inputs):
            raise TypeError(f"this model takes {len(self.inputs)} inputs ({', '.join(self.inputs)}), got {len(shapes)}")
        if shapes:
            specs = zip(self.inputs, shapes, self.inputs.values(), strict=True)
            feeds = {name: self._xp.zeros(shape, dtype or np.float32) for name, shape, (_, dtype) in specs}
        else:
            feeds = self._zeros(1)
        return summarize(self.graph, self._checked(feeds), Where(self._xp, self._backend, Budget(self._budget.limit)))

    def _zeros(self, batch: int) -> dict[str, Array]:
        feeds = {}
        for name, (shape, dtype) in self.inputs.items():
            if shape is None:
                raise ValueError(f"input {name!r} may have any shape, so its shape has to be given")
            feeds[name] = self._xp.zeros([batch if n is None else n for n in shape], dtype or np.float32)
        return feeds

    def _new_program(self, key: Any, feeds: dict[str, Array]) -> dict[str, Array]:
        for old in [key, *list(self._programs)[: max(len(self._programs) - PROGRAMS + 1, 0)]]:
            if (program := self._programs.pop(old, None)) is not None:
                self._budget.give(program.nbytes)
        held = self._budget.held
        try:
            program = Program(self.graph, feeds, Where(self._xp, self._backend, self._budget), self._layout)
        except BaseException:
            self._budget.held = held
            raise
        self._programs[key] = program
        first, program.first = program.first, {}
        return first

    def _checked(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The inputs in C order and in the order of `inputs`."""
        if not isinstance(feeds, Mapping):
            raise TypeError(f"feeds must map the names of inputs to arrays, got {type(feeds).__name__}")
        if feeds.keys() != self.inputs.keys():
            raise ValueError(f"feeds must be named {', '.join(self.inputs)}; got {', '.join(map(str, feeds))}")
        return {name: self._input(name, feeds[name], *spec) for name, spec in self.inputs.items()}

    def _input(self, name: str, value: Array, shape: Any, dtype: Any) -> Array:
        value = np.asarray(value) if isinstance(value, np.generic) else value
        if self._xp is np and not isinstance(value, np.ndarray):
            raise TypeError(f"input {name!r} must be a NumPy array, got {type(value).__name__}")
        if value.dtype.byteorder == ">":
            value = value.astype(value.dtype.newbyteorder("="))
        if dtype is not None and value.dtype != dtype:
            raise TypeError(f"input {name!r} must be of dtype {dtype}, got {value.dtype}")
        fits = shape is None or (
            len(shape) == value.ndim and all(n in (None, m) for n, m in zip(shape, value.shape, strict=True))
        )
        if not fits:
            wanted = " x ".join("any" if n is None else str(n) for n in shape)
            raise ValueError(f"input {name!r} must be of shape {wanted}, got {' x '.join(map(str, value.shape))}")
        return self._xp.ascontiguousarray(value).reshape(value.shape)


def _namespace(backend: str) -> ModuleType:
    """NumPy or CuPy."""
    if backend == "cupy":
        import cupy

        module: ModuleType = cupy
        return module
    return np
