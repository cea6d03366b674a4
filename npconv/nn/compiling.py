"""From layers to a graph for inference: what is known of a layer's forward pass becomes nodes that can be fused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from npconv.inference import MAX_MEMORY, Graph, LimitError, Model, Node, optimise
from npconv.nn.activation import Hardswish, ReLU, ReLU6, Sigmoid, SiLU
from npconv.nn.arguments import Array, flag, namespace, per_axis, positive
from npconv.nn.container import Add, Concat, Sequential
from npconv.nn.conv import Conv, ConvTranspose
from npconv.nn.dropout import Dropout
from npconv.nn.linear import Linear
from npconv.nn.module import Module
from npconv.nn.norm import BatchNorm
from npconv.nn.pooling import AvgPool, MaxPool
from npconv.nn.resample import AdaptiveAvgPool
from npconv.nn.shape import Flatten


def compile(  # noqa: A001 - PyTorch's name for it
    model: Module, input_shape: tuple[int, ...], *, batch: int = 1, fuse: bool = True, max_memory: int = MAX_MEMORY
) -> Model:
    """Make a network ready for inference.

    Batch normalisation and activations move into the convolutions before them, weights are packed, every layer is
    planned for the shape of its input, and all results between the layers share one arena of memory.

    Parameters
    ----------
    model : Module
        It is left as it is. What is compiled is the network in evaluation mode with the weights that it has now.
    input_shape : tuple of int
        Of one sample, ``(C, *spatial)`` or ``(features,)``, without the batch.
    batch : int
        Samples at a time for which it is made ready at once; for others it is at the first call with so many.
    fuse : bool
        False keeps one node for every layer, as for looking at results in between.
    max_memory : int
        Bytes that weights and results may take.

    Returns
    -------
    npconv.inference.Model
        Maps ``(N, *input_shape)`` to what `model` gives in evaluation mode, up to rounding.

    Raises
    ------
    ValueError, TypeError
        If `model` is not a `Module`, the shape does not fit it, or `max_memory` does not suffice; a layer's errors name
        the layer.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> net = nc.nn.Sequential(nc.nn.Conv2d(3, 8, 3, padding=1, rng=0), nc.nn.BatchNorm2d(8), nc.nn.ReLU()).eval()
    >>> fast = nc.nn.compile(net, (3, 16, 16))
    >>> [node.op for node in fast.graph.nodes]
    ['conv']
    >>> x = np.random.default_rng(0).random((1, 3, 16, 16), "float32")
    >>> bool(np.allclose(fast(x), net(x), atol=1e-6))
    True
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a Module, got {type(model).__name__}")
    if not isinstance(input_shape, tuple | list) or not input_shape:
        raise TypeError(f"input_shape must be a tuple, (C, *spatial) of one sample, got {input_shape!r:.60}")
    shape = per_axis("input_shape", input_shape, len(input_shape))
    batch, max_memory = positive("batch", batch), positive("max_memory", max_memory)
    made = _Translation()
    output = made.add(model, "x", "model")
    state = [entry.value for entry in model.parameters()]
    xp = namespace("the first parameter", state[0]) if state else None
    dtype = None if xp is None else state[0].dtype
    graph = Graph(["x"], [output], made.constants, made.nodes)
    if flag("fuse", fuse):
        graph = optimise(graph, {"x": len(shape) + 1})
    backend = "cupy" if xp is not None and xp.__name__ == "cupy" else None
    compiled = Model(graph, {"x": ((None, *shape), dtype)}, max_memory=max_memory, backend=backend)
    try:
        compiled.prepare(batch)
    except LimitError:
        raise
    except ValueError as error:
        raise ValueError(f"input_shape={shape}, of one sample, does not fit the model: {error}") from error
    return compiled


class _Translation:
    """Nodes and constants of the layers so far."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {}
        self._count = 0

    def add(self, layer: Module, x: str, name: str) -> str:
        """Add a layer that reads the value `x`, and return the name of its result."""
        # A subclass with a forward pass of its own is none of the known layers.
        translate = _KNOWN.get(type(layer).forward)
        found = None if translate is None else translate(self, layer, x, name)
        if found is not None:
            return found
        frozen = copy.deepcopy(layer).eval()
        return self.node("call", (x,), name, function=lambda value: (frozen(value),))

    def node(self, op: str, inputs: tuple[str, ...], name: str, **attributes: Any) -> str:
        """Add a node and return the name of its result."""
        self._count += 1
        output = f"{self._count}:{name}"
        self.nodes.append(Node(op, inputs, (output,), attributes, f"{name} ({op})"))
        return output

    def constant(self, name: str, value: Array) -> str:
        """Keep a copy of an array and return its name."""
        self.constants[name] = value.copy()
        return name

    def weights(self, layer: Any, name: str) -> tuple[str, ...]:
        """The weight, and the bias if there is one."""
        names = [self.constant(f"{name}.weight", layer.weight.value)]
        if layer.bias is not None:
            names.append(self.constant(f"{name}.bias", layer.bias.value))
        return tuple(names)


def _sequential(made: _Translation, layer: Any, x: str, name: str) -> str:
    for part, inner in layer.named_children():
        x = made.add(inner, x, f"{name}.{part}" if part else name)
    return x


def _branches(made: _Translation, layer: Any, x: str, name: str) -> tuple[str, ...]:
    return tuple(made.add(inner, x, f"{name}.{part}" if part else name) for part, inner in layer.named_children())


def _add(made: _Translation, layer: Any, x: str, name: str) -> str:
    return made.node("add", _branches(made, layer, x, name), name)


def _concat(made: _Translation, layer: Any, x: str, name: str) -> str:
    return made.node("concat", _branches(made, layer, x, name), name, axis=layer.axis)


def _conv(made: _Translation, layer: Any, x: str, name: str) -> str:
    geometry = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups", "padding_mode")}
    return made.node("conv", (x, *made.weights(layer, name)), name, **geometry)


def _conv_transpose(made: _Translation, layer: Any, x: str, name: str) -> str | None:
    ndim = len(layer.kernel_size)
    if isinstance(layer.padding, str):
        return None
    pads = layer.padding if isinstance(layer.padding, tuple) else (layer.padding,) * ndim
    geometry = {
        "stride": layer.stride,
        "padding": tuple(pad if isinstance(pad, tuple) else (pad, pad) for pad in pads),
        "output_padding": per_axis("output_padding", layer.output_padding, ndim, least=0),
        "groups": layer.groups,
        "dilation": layer.dilation,
    }
    return made.node("conv_transpose", (x, *made.weights(layer, name)), name, **geometry)


def _batch_norm(made: _Translation, layer: Any, x: str, name: str) -> str | None:
    if layer.running_mean is None:
        return None  # it normalises by the batch
    mean, var = layer.running_mean.value, layer.running_var.value
    scale = 0 * mean + 1 if layer.weight is None else layer.weight.value
    bias = 0 * mean if layer.bias is None else layer.bias.value
    values = {"weight": scale, "bias": bias, "running_mean": mean, "running_var": var}
    names = [made.constant(f"{name}.{part}", value) for part, value in values.items()]
    return made.node("batch_norm", (x, *names), name, eps=layer.eps)


def _linear(made: _Translation, layer: Any, x: str, name: str) -> str:
    weight, *bias = made.weights(layer, name)
    # A view: its rows stay in one stretch, which is what a product with one vector wants.
    made.constants[weight] = made.constants[weight].T
    return made.node("linear", (x, weight, *bias), name)


def _pool(op: str) -> Callable[[_Translation, Any, str, str], str | None]:
    def translate(made: _Translation, layer: Any, x: str, name: str) -> str | None:
        ndim = len(layer.kernel_size) if isinstance(layer.kernel_size, tuple) else None
        if ndim is None:
            return None
        stride = layer.kernel_size if layer.stride is None else layer.stride
        pads = layer.padding
        if not isinstance(pads, str):
            pads = pads if isinstance(pads, tuple) else (pads,) * ndim
            pads = tuple(pad if isinstance(pad, tuple) else (pad, pad) for pad in pads)
        window = {
            "kernel_size": layer.kernel_size,
            "stride": per_axis("stride", stride, ndim),
            "padding": pads,
            "dilation": per_axis("dilation", getattr(layer, "dilation", 1), ndim),
            "ceil_mode": layer.ceil_mode,
        }
        if op == "avg_pool":
            window["count_include_pad"] = layer.count_include_pad
        return made.node(op, (x,), name, **window)

    return translate


def _adaptive(made: _Translation, layer: Any, x: str, name: str) -> str | None:
    if not isinstance(layer, AdaptiveAvgPool):
        return None
    sizes = layer.output_size if isinstance(layer.output_size, tuple) else (layer.output_size,)
    return made.node("mean", (x,), name) if all(n == 1 for n in sizes) else None


def _activation(word: str) -> Callable[[_Translation, Any, str, str], str]:
    return lambda made, layer, x, name: made.node("activation", (x,), name, activation=(word,))


def _smooth(made: _Translation, layer: Any, x: str, name: str) -> str | None:
    for kind, word in ((Sigmoid, "sigmoid"), (SiLU, "silu"), (Hardswish, "hardswish")):
        if type(layer)._value_and_slope is kind._value_and_slope:
            return made.node("activation", (x,), name, activation=(word,))
    return None


def _flatten(made: _Translation, layer: Any, x: str, name: str) -> str:
    return made.node("reshape", (x,), name, shape=_flat)


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    size = 1
    for n in shape[1:]:
        size *= n
    return shape[0], size


def _identity(made: _Translation, layer: Any, x: str, name: str) -> str:
    return x


_KNOWN: dict[Any, Callable[[_Translation, Any, str, str], str | None]] = {
    Add.forward: _add,
    AdaptiveAvgPool.forward: _adaptive,
    AvgPool.forward: _pool("avg_pool"),
    BatchNorm.forward: _batch_norm,
    Concat.forward: _concat,
    Conv.forward: _conv,
    ConvTranspose.forward: _conv_transpose,
    Dropout.forward: _identity,
    Flatten.forward: _flatten,
    Linear.forward: _linear,
    MaxPool.forward: _pool("max_pool"),
    ReLU.forward: _activation("relu"),
    ReLU6.forward: _activation("relu6"),
    Sequential.forward: _sequential,
    Sigmoid.forward: _smooth,
}
"""How known layers are translated, by their forward passes; the result is None where a variant is not known."""
