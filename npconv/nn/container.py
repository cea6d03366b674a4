"""Modules made of other modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self, overload

from npconv.nn.arguments import Array
from npconv.nn.module import Module


class Container(Module):
    """Layers by number. A subclass decides how an array goes through them.

    Parameters
    ----------
    *layers : Module
        Each may stand in one place only: it keeps what one backward pass needs. Layers may share a `Parameter`.

    Raises
    ------
    TypeError
        If one of them is not a module.
    ValueError
        If one of them, or a module inside it, occurs twice.

    Examples
    --------
    Branches whose results are added:

    >>> import numpy as np
    >>> import npconv as nc
    >>> class Add(nc.nn.Container):
    ...     def forward(self, x):
    ...         return sum(layer(x) for layer in self)
    ...
    ...     def backward(self, dy):
    ...         return sum(layer.backward(dy) for layer in self)
    >>> Add(nc.nn.ReLU(), nc.nn.Sequential())(np.array([-1.0, 2.0]))
    array([-1.,  4.])
    """

    def __init__(self, *layers: Module) -> None:
        place: dict[int, int] = {}
        for number, layer in enumerate(layers):
            if not isinstance(layer, Module):
                hint = f"; write {type(self).__name__}(*layers)" if isinstance(layer, list | tuple) else ""
                raise TypeError(f"layers[{number}] must be a Module, got {type(layer).__name__}{hint}")
            for _, module in layer.named_modules():
                if id(module) in place:
                    raise ValueError(
                        f"layers[{number}] uses the same {type(module).__name__} as layers[{place[id(module)]}]: "
                        "a layer keeps what one backward pass needs, so make one for every place"
                    )
                place[id(module)] = number
        self._layers = layers

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Yield the layers under their numbers."""
        yield from super().named_children()
        for number, layer in enumerate(self._layers):
            yield str(number), layer

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._layers)

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Module:
        """Return one layer, or a container of the same kind that shares some of them."""
        return type(self)(*self._layers[index]) if isinstance(index, slice) else self._layers[index]


class Sequential(Container):
    """Layers one after the other.

    Parameters
    ----------
    *layers : Module
        Each may stand in one place only. None at all is the identity.

    Raises
    ------
    TypeError, ValueError
        If `layers` are not modules, all different.

    Notes
    -----
    Parameters are named by the number of their layer, ``"0.weight"``, as PyTorch names them. A slice is a network that
    shares its layers with this one.

    Examples
    --------
    LeNet-5, its layers drawing on one generator:

    >>> import numpy as np
    >>> import npconv as nc
    >>> rng = np.random.default_rng(0)
    >>> net = nc.nn.Sequential(
    ...     nc.nn.Conv2d(1, 6, 5, padding=2, rng=rng), nc.nn.ReLU(), nc.nn.MaxPool2d(2),
    ...     nc.nn.Conv2d(6, 16, 5, rng=rng), nc.nn.ReLU(), nc.nn.MaxPool2d(2),
    ...     nc.nn.Flatten(),
    ...     nc.nn.Linear(400, 120, rng=rng), nc.nn.ReLU(),
    ...     nc.nn.Linear(120, 84, rng=rng), nc.nn.ReLU(),
    ...     nc.nn.Linear(84, 10, rng=rng),
    ... )
    >>> sum(parameter.value.size for parameter in net.parameters())
    61706
    >>> loss, sgd = nc.nn.CrossEntropyLoss(), nc.nn.SGD(net.parameters(), lr=0.1, momentum=0.9)
    >>> x, labels = rng.random((4, 1, 28, 28), "float32"), np.array([3, 1, 4, 1])
    >>> losses = []
    >>> for _ in range(3):
    ...     losses.append(loss(net(x), labels))
    ...     sgd.zero_grad()
    ...     dx = net.backward(loss.backward())
    ...     sgd.step()
    >>> losses[0] > losses[1] > losses[2]
    True
    >>> net[:3]
    Sequential(
      (0): Conv2d(1, 6, kernel_size=(5, 5), padding=2)
      (1): ReLU()
      (2): MaxPool2d(kernel_size=(2, 2))
    )
    """

    def forward(self, x: Array) -> Array:
        """Send `x` through all layers.

        Parameters
        ----------
        x : array
            What the first layer takes.

        Returns
        -------
        array
            What the last layer gives.
        """
        for layer in self:
            x = layer(x)
        return x

    def backward(self, dy: Array) -> Array:
        """Send the gradient back through all layers; see `Module.backward`."""
        for layer in reversed(self._layers):
            dy = layer.backward(dy)
        return dy
