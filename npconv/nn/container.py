"""Modules made of other modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import cast, overload

from npconv.nn.activation import Rectifier, ReLU, ReLU6
from npconv.nn.arguments import Array, check_shape, namespace, positive
from npconv.nn.module import Module
from npconv.nn.norm import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d


class Container(Module):
    """Layers by number or by name. A subclass decides how an array goes through them.

    Parameters
    ----------
    *layers : Module
        Each may stand in one place only: it keeps what one backward pass needs. Layers may share a `Parameter`.
    **named : Module
        More layers, after those, each under a name: an attribute of that name holds it, which may be assigned a new
        layer. Under the name ``""`` a layer's own layers, parameters and buffers are named as if they were here.

    Raises
    ------
    TypeError
        If one of them is not a module.
    ValueError
        If one of them, or a module inside it, occurs twice, or a name is already taken.

    Examples
    --------
    Branches whose mean is taken:

    >>> import numpy as np
    >>> import npconv as nc
    >>> class Mean(nc.nn.Container):
    ...     def forward(self, x):
    ...         return sum(layer(x) for layer in self) / len(self)
    ...
    ...     def backward(self, dy):
    ...         return sum(layer.backward(dy / len(self)) for layer in self)
    >>> Mean(nc.nn.ReLU(), nc.nn.Sequential())(np.array([-1.0, 2.0]))
    array([-0.5,  2. ])

    Names instead of numbers:

    >>> net = nc.nn.Sequential(body=nc.nn.Linear(3, 8, rng=0), act=nc.nn.ReLU(), head=nc.nn.Linear(8, 2, rng=0))
    >>> net.head
    Linear(8, 2)
    >>> list(net.state_dict())
    ['body.weight', 'body.bias', 'head.weight', 'head.bias']
    """

    def __init__(self, *layers: Module, **named: Module) -> None:
        inside = {str(number): layer for number, layer in enumerate(layers)} | named
        place: dict[int, str] = {}
        for name, layer in inside.items():
            here = f"layers[{name}]" if name.isdecimal() else f"layer {name!r}"
            if not isinstance(layer, Module):
                hint = f"; write {type(self).__name__}(*layers)" if isinstance(layer, list | tuple) else ""
                raise TypeError(f"{here} must be a Module, got {type(layer).__name__}{hint}")
            if "." in name or (name in named and (name.isdecimal() or hasattr(self, name))):
                raise ValueError(
                    f"{here} cannot have that name: it has a dot, is a number, or stands for something else"
                )
            for _, module in layer.named_modules():
                if id(module) in place:
                    raise ValueError(
                        f"{here} uses the same {type(module).__name__} as {place[id(module)]}: "
                        "a layer keeps what one backward pass needs, so make one for every place"
                    )
                place[id(module)] = here
        self._names = tuple(inside)
        vars(self).update(inside)
        self._check_names()

    def _check_names(self) -> None:
        """Raise if two entries of the state have one name, as the name ``""`` makes possible."""
        seen: set[str] = set()
        for name, _ in self._named_state():
            if name in seen:
                raise ValueError(f"two layers both have a {name!r}: give one of them a name of its own")
            seen.add(name)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Module]:
        return (vars(self)[name] for name in self._names)

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> Container: ...
    def __getitem__(self, index: int | slice) -> Module:
        """Return one layer, or a container of the same kind that shares some of them."""
        if not isinstance(index, slice):
            return cast(Module, vars(self)[self._names[index]])
        chosen = [(name, vars(self)[name]) for name in self._names[index]]
        numbered = [layer for name, layer in chosen if name.isdecimal()]
        return self._remade(numbered, {name: layer for name, layer in chosen if not name.isdecimal()})

    def _remade(self, layers: Iterable[Module], named: Mapping[str, Module]) -> Container:
        """Return a container of this kind for some of its layers."""
        return type(self)(*layers, **named)


class Sequential(Container):
    """Layers one after the other.

    Parameters
    ----------
    *layers, **named : Module
        By number or by name, as in `Container`; each in one place only. None at all is the identity.

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
        layers = tuple(self)
        done: Module | None = None
        for layer, following in zip_longest(layers, layers[1:]):
            if layer is done:
                continue
            if isinstance(following, Rectifier) and _fuses(layer, following):
                # One pass over the memory instead of three, and no mask to keep.
                x, done = cast(BatchNorm, layer).activated(x, following.activation), following
                following.applied()
            else:
                x = layer(x)
        return x

    def backward(self, dy: Array) -> Array:
        """Send the gradient back through all layers; see `Module.backward`."""
        for layer in reversed(tuple(self)):
            dy = layer.backward(dy)
        return dy

    def backward_parameters(self, dy: Array) -> None:
        """Send the gradient back to the parameters alone; see `Module.backward_parameters`."""
        if type(self).backward is not Sequential.backward or not len(self):  # a subclass may do more in its own
            self.backward(dy)
            return
        first, *others = self
        for layer in reversed(others):
            dy = layer.backward(dy)
        first.backward_parameters(dy)


def _fuses(layer: Module, following: Module) -> bool:
    """Whether a batch normalisation does an activation's work: in training, and if both are npconv's own."""
    own = (BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d)
    return type(layer) in own and type(following) in (ReLU, ReLU6) and layer.training and following.training


class Branches(Container):
    """Layers side by side, each on the same input; at least one."""

    def __init__(self, *layers: Module, **named: Module) -> None:
        super().__init__(*layers, **named)
        if not len(self):
            raise ValueError("layers must not be empty: without any there is no result")

    def joined(self, results: list[Array]) -> Array:
        """Return what this layer makes of its layers' results, and keep what its backward pass needs."""
        raise NotImplementedError(f"{type(self).__name__} must define joined(results)")

    def _check(self, results: list[Array], axis: int | None) -> None:
        """Raise unless all results are of one shape but along `axis`."""
        shapes = [tuple(y.shape) for y in results]
        if axis is not None and not 0 <= axis < len(shapes[0]):
            raise ValueError(f"axis is {axis}, but layers[0] gave shape {shapes[0]}")
        fixed = [shape if axis is None else shape[:axis] + shape[axis + 1 :] for shape in shapes]
        for number, shape in enumerate(fixed):
            if shape != fixed[0] or len(shapes[number]) != len(shapes[0]):
                beside = "" if axis is None else f" but along axis {axis}"
                raise ValueError(
                    f"layers must give results of one shape{beside}; layers[0] gave {shapes[0]} and layers[{number}] "
                    f"gave {shapes[number]}"
                )


class Add(Branches):
    """Layers side by side, their results added: a residual is ``Add(body, Sequential())``.

    Parameters
    ----------
    *layers, **named : Module
        At least one, by number or by name, as in `Container`; each in one place only. ``Sequential()`` is the identity.

    Raises
    ------
    TypeError, ValueError
        If `layers` are not modules, all different.

    Notes
    -----
    All layers must give results of one shape: nothing is broadcast.

    References
    ----------
    K. He, X. Zhang, S. Ren, J. Sun, *Deep residual learning for image recognition*, arXiv:1512.03385.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> layer = nc.nn.Add(nc.nn.ReLU(), nc.nn.Sequential())
    >>> layer(np.array([-1.0, 2.0]))
    array([-1.,  4.])
    >>> layer.backward(np.array([1.0, 1.0]))
    array([1., 2.])
    """

    def forward(self, x: Array) -> Array:
        """Send `x` through every layer and add what they give.

        Parameters
        ----------
        x : array
            What every layer takes.

        Returns
        -------
        array

        Raises
        ------
        ValueError
            If the results are not of one shape.
        """
        return self.joined([layer(x) for layer in self])

    def joined(self, results: list[Array]) -> Array:
        """Return the sum."""
        self._check(results, None)
        y, *others = results
        for other in others:
            y = y + other
        self.keep(tuple(y.shape))
        return y

    def backward(self, dy: Array) -> Array:
        """Send the gradient back through all layers and add what they give; see `Module.backward`."""
        check_shape("dy", dy, self.recall(), "that of the result")
        dx, *others = [layer.backward(dy) for layer in self]
        for other in others:
            dx = dx + other
        return dx


class Concat(Branches):
    """Layers side by side, their results joined along an axis: kernels of several sizes on one image.

    Parameters
    ----------
    *layers, **named : Module
        At least one, by number or by name, as in `Container`; each in one place only. ``Sequential()`` is the identity.
    axis : int
        Zero or more; 1 is that of the channels in a batch.

    Raises
    ------
    TypeError, ValueError
        If `layers` are not modules, all different, or `axis` is not such an integer.

    Notes
    -----
    All layers must give results of one shape but along `axis`.

    References
    ----------
    C. Szegedy et al., *Going deeper with convolutions*, arXiv:1409.4842.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> mixed = nc.nn.Concat(nc.nn.Conv2d(3, 4, 3, padding=1, rng=0), nc.nn.Conv2d(3, 2, 5, padding=2, rng=0))
    >>> y = mixed(np.ones((1, 3, 8, 8), "float32"))
    >>> y.shape, mixed.backward(y).shape
    ((1, 6, 8, 8), (1, 3, 8, 8))
    """

    def __init__(self, *layers: Module, axis: int = 1, **named: Module) -> None:
        super().__init__(*layers, **named)
        self.axis = positive("axis", axis, least=0)

    def forward(self, x: Array) -> Array:
        """Send `x` through every layer and join what they give.

        Parameters
        ----------
        x : array
            What every layer takes.

        Returns
        -------
        array

        Raises
        ------
        ValueError
            If the results are not of one shape but along the axis.
        """
        return self.joined([layer(x) for layer in self])

    def joined(self, results: list[Array]) -> Array:
        """Return the results side by side."""
        self._check(results, self.axis)
        y = namespace("the result of layers[0]", results[0]).concatenate(results, axis=self.axis)
        self.keep((tuple(y.shape), [result.shape[self.axis] for result in results]))
        return y

    def backward(self, dy: Array) -> Array:
        """Send each layer its part of the gradient back and add what they give; see `Module.backward`."""
        shape, sizes = self.recall()
        check_shape("dy", dy, shape, "that of the result")
        dx, start = None, 0
        for layer, size in zip(self, sizes, strict=True):
            part = layer.backward(dy[(slice(None),) * self.axis + (slice(start, start + size),)])
            dx, start = part if dx is None else dx + part, start + size
        return dx

    def _remade(self, layers: Iterable[Module], named: Mapping[str, Module]) -> Container:
        return type(self)(*layers, axis=self.axis, **named)

    def describe(self) -> str:
        """Return the axis."""
        return f"axis={self.axis}"
