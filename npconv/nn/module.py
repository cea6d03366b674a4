"""What every layer is: a `Module` with a forward and a backward pass, its parameters, and its state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

import npconv as nc
from npconv.nn.arguments import Array, array_mover, check_shape, converted, namespace

if TYPE_CHECKING:
    from npconv.nn.summary import Summary


class Parameter:
    """An array that is learned, and its gradient.

    Parameters
    ----------
    value : array
        Held as it is, not copied.

    Attributes
    ----------
    value : array
        An optimiser replaces it by a new array; it is never written into.
    grad : array or None
        The sum of the gradients since the last `Module.zero_grad`, in the shape and dtype of `value`; None before the
        first.

    Raises
    ------
    TypeError
        If `value` is not an array.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> p = nc.nn.Parameter(np.zeros(2))
    >>> p.accumulate(np.array([1.0, 2.0]))
    >>> p.accumulate(np.array([10.0, 10.0]))
    >>> p.grad
    array([11., 12.])
    """

    def __init__(self, value: Array) -> None:
        namespace("value", value)
        self.value = value
        self.grad: Array | None = None

    def accumulate(self, grad: Array) -> None:
        """Add `grad` to the gradient. Called by a layer's backward pass.

        Parameters
        ----------
        grad : array
            Of the shape of `value`.

        Raises
        ------
        ValueError
            If it has another shape.
        """
        check_shape("grad", grad, tuple(self.value.shape), "that of the parameter")
        grad = grad.astype(self.value.dtype, copy=False)
        self.grad = grad if self.grad is None else self.grad + grad

    def __repr__(self) -> str:
        return f"Parameter(shape={tuple(self.value.shape)}, dtype={self.value.dtype})"


class Buffer:
    """An array that belongs to a module's state but is not learned, such as the running mean of a batch normalisation.

    Parameters
    ----------
    value : array
        Held as it is, not copied.

    Raises
    ------
    TypeError
        If `value` is not an array.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> nc.nn.Buffer(np.zeros(8))
    Buffer(shape=(8,), dtype=float64)
    """

    def __init__(self, value: Array) -> None:
        namespace("value", value)
        self.value = value

    def __repr__(self) -> str:
        return f"Buffer(shape={tuple(self.value.shape)}, dtype={self.value.dtype})"


class Memory:
    """What a forward pass leaves for its backward pass.

    One value, for one backward pass. So an object that runs forward twice before it runs backward, as in two places of
    one network, raises an error at its second backward pass, where a lasting value would give a wrong gradient.
    """

    _kept: tuple[Any] | None = None

    def keep(self, value: Any) -> None:
        """Keep `value`, anything the backward pass needs, for `recall`."""
        self._kept = (value,)

    def recall(self) -> Any:
        """Return what the last forward pass kept, and forget it.

        Raises
        ------
        RuntimeError
            If there is nothing: no forward pass since the last backward pass.
        """
        if self._kept is None:
            raise RuntimeError(f"{type(self).__name__}.backward needs {self._needs()}")
        (value,) = self._kept
        self._kept = None
        return value

    def _needs(self) -> str:
        return "a forward pass before it; each forward pass serves one backward pass"

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles do without: what was kept belongs to one pass, and a pullback cannot be pickled.
        return {name: value for name, value in vars(self).items() if name != "_kept"}


class Module(Memory):
    """A layer, or a network of layers: a function of one array with a hand-written backward pass.

    A subclass defines `forward` and `backward`. Its attributes are its state: every `Parameter`, `Buffer` and `Module`
    among them is found under the attribute's name.

    Attributes
    ----------
    training : bool
        True at first. In evaluation mode nothing is kept for a backward pass. Set it with `train` and `eval`.

    Notes
    -----
    Arrays that went into a forward pass, or came out of it, must not be changed until its backward pass is done.

    Examples
    --------
    A layer of one's own: `keep` in the forward pass, `recall` in the backward pass.

    >>> import numpy as np
    >>> import npconv as nc
    >>> class Scale(nc.nn.Module):
    ...     def __init__(self, factor):
    ...         self.factor = nc.nn.Parameter(np.array([factor]))
    ...
    ...     def forward(self, x):
    ...         self.keep(x)
    ...         return x * self.factor.value
    ...
    ...     def backward(self, dy):
    ...         x = self.recall()
    ...         self.factor.accumulate((dy * x).sum().reshape(1))
    ...         return dy * self.factor.value
    >>> layer = Scale(2.0)
    >>> layer(np.array([1.0, 2.0, 3.0]))
    array([2., 4., 6.])
    >>> layer.backward(np.ones(3)), layer.factor.grad
    (array([2., 2., 2.]), array([6.]))
    """

    training: bool = True

    def __call__(self, x: Array) -> Array:
        """Run `forward`."""
        return self.forward(x)

    def forward(self, x: Array) -> Array:
        """Compute the result.

        Parameters
        ----------
        x : array

        Returns
        -------
        array
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(x)")

    def backward(self, dy: Array) -> Array:
        """Send the gradient of the last result back: add to every parameter's gradient, return the input's.

        Parameters
        ----------
        dy : array
            Of the shape that the last `forward` returned.

        Returns
        -------
        array
            Of the shape of its `x`.

        Raises
        ------
        RuntimeError
            Unless a forward pass in training mode came before, one for each backward pass.
        """
        raise NotImplementedError(f"{type(self).__name__} must define backward(dy)")

    def backward_parameters(self, dy: Array) -> None:
        """Send the gradient back to the parameters alone: `backward` for a network whose input's gradient nobody needs.

        So a first layer need not compute it, which for a convolution is half of its backward pass. `fit` does this.

        Parameters
        ----------
        dy : array
            Of the shape that the last `forward` returned.

        Raises
        ------
        RuntimeError
            As for `backward`.

        Examples
        --------
        >>> import numpy as np
        >>> import npconv as nc
        >>> layer = nc.nn.Linear(3, 2, rng=0)
        >>> y = layer(np.ones((1, 3), "float32"))
        >>> layer.backward_parameters(np.ones_like(y))
        >>> layer.bias.grad
        array([1., 1.], dtype=float32)
        """
        self.backward(dy)

    def keep(self, value: Any) -> None:
        """Keep `value`, anything the backward pass needs, for `recall`; in evaluation mode keep nothing."""
        self._kept = (value,) if self.training else None

    def _needs(self) -> str:
        if self.training:
            return "a forward pass in training mode before it; each forward pass serves one backward pass"
        return "a forward pass in training mode before it, but this layer is in evaluation mode: call train() first"

    # ----------------------------------------------------------------------------------------------------------------
    # What a module is made of
    # ----------------------------------------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Yield the modules directly inside this one, with their names."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield this module under the name `prefix`, and all inside it under dotted names, each before its children."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(joined_name(prefix, name))

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield all parameters with their dotted names, one that is shared only once.

        Examples
        --------
        >>> import npconv as nc
        >>> net = nc.nn.Sequential(nc.nn.Conv2d(1, 4, 3), nc.nn.ReLU(), nc.nn.Flatten(), nc.nn.Linear(16, 10))
        >>> [name for name, _ in net.named_parameters()]
        ['0.weight', '0.bias', '3.weight', '3.bias']
        """
        seen: set[int] = set()
        for name, value in self._named_state():
            if isinstance(value, Parameter) and id(value) not in seen:
                seen.add(id(value))
                yield name, value

    def parameters(self) -> Iterator[Parameter]:
        """Yield all parameters, as an optimiser takes them."""
        for _, parameter in self.named_parameters():
            yield parameter

    def buffers(self) -> Iterator[Buffer]:
        """Yield all buffers, one that is shared only once."""
        yield from {id(value): value for _, value in self._named_state() if isinstance(value, Buffer)}.values()

    def _named_state(self) -> Iterator[tuple[str, Parameter | Buffer]]:
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter | Buffer):
                    yield joined_name(prefix, name), value

    # ----------------------------------------------------------------------------------------------------------------
    # Modes, gradients, state
    # ----------------------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Set training mode, or with False evaluation mode, here and in all modules inside.

        Parameters
        ----------
        mode : bool

        Returns
        -------
        Module
            This one.
        """
        for _, module in self.named_modules():
            module.training = bool(mode)
            if not mode:
                module._kept = None
        return self

    def eval(self) -> Self:
        """Set evaluation mode: ``train(False)``. What was kept for a backward pass is dropped."""
        return self.train(False)

    def to(self, backend: str) -> Self:
        """Move all parameters and buffers to where a backend computes; gradients are dropped.

        The network then takes arrays of that kind. Make an optimiser after this, since it keeps arrays of its own.

        Parameters
        ----------
        backend : {"numpy", "numba", "cupy"}
            ``"cupy"`` is the current GPU, the others are the host's memory.

        Returns
        -------
        Module
            This one.

        Raises
        ------
        ValueError, ImportError
            As for `npconv.use_backend`.

        Examples
        --------
        >>> import npconv as nc
        >>> layer = nc.nn.Linear(3, 2)
        >>> layer.to("numpy") is layer
        True
        """
        with nc.use_backend(backend):  # says what is missing, before anything is moved
            moved = array_mover(backend)
        for _, entry in self._named_state():
            entry.value = moved(entry.value)
            if isinstance(entry, Parameter):
                entry.grad = None
        return self

    def zero_grad(self) -> None:
        """Forget all gradients; the next backward pass starts from none."""
        for parameter in self.parameters():
            parameter.grad = None

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters and buffers by their dotted names, which are PyTorch's for the same network.

        Returns
        -------
        dict of str to array

        Examples
        --------
        >>> import npconv as nc
        >>> {name: value.shape for name, value in nc.nn.Linear(3, 2).state_dict().items()}
        {'weight': (2, 3), 'bias': (2,)}
        """
        return {name: entry.value.copy() for name, entry in self._named_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy all parameters and buffers from `state`. Either everything fits, or nothing is changed.

        Parameters
        ----------
        state : mapping of str to array
            As `state_dict` returns it: exactly these names and shapes. Values are converted to the dtype and the kind
            of array that the module has; what NumPy can read, as a PyTorch ``state_dict`` on the CPU, loads as it is.

        Raises
        ------
        ValueError
            If a name is missing or unknown, or a shape does not match; all of them are named.
        TypeError
            If a value is no array, or of a kind of numbers that does not convert; it is named too.

        Examples
        --------
        >>> import npconv as nc
        >>> a, b = nc.nn.Linear(3, 2, rng=0), nc.nn.Linear(3, 2, rng=1)
        >>> b.load_state_dict(a.state_dict())
        >>> bool((a.weight.value == b.weight.value).all())
        True
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping of names to arrays, got {type(state).__name__}")
        entries = dict(self._named_state())
        problems = [f"{name!r} is missing" for name in entries if name not in state]
        problems += [f"{name!r} is unknown" for name in state if name not in entries]
        values = {name: converted(name, state[name], entry.value) for name, entry in entries.items() if name in state}
        for name, value in values.items():
            expected = tuple(entries[name].value.shape)
            if tuple(value.shape) != expected:
                problems.append(f"{name!r} has shape {tuple(value.shape)} where {expected} is expected")
        if problems:
            raise ValueError(f"state does not fit this {type(self).__name__}: {'; '.join(problems)}")
        for name, value in values.items():
            entries[name].value = value

    def summary(self, input_shape: tuple[int, ...]) -> Summary:
        """Look at every layer: its result's shape, its receptive field, its parameters and multiply-accumulates.

        Parameters
        ----------
        input_shape : tuple of int
            Of one sample, ``(C, *spatial)`` or ``(features,)``, without the batch.

        Returns
        -------
        Summary
            Prints as a table; its `rows` are data.

        Raises
        ------
        ValueError, TypeError
            If `input_shape` is not such a shape, or does not fit the network.

        Examples
        --------
        >>> import npconv as nc
        >>> print(nc.nn.Sequential(nc.nn.Conv2d(3, 8, 3, padding=1), nc.nn.ReLU()).summary((3, 32, 32)))
        layer  kind    result   receptive field  parameters     MACs
        0      Conv2d  8x32x32              3x3         224  221,184
        1      ReLU    8x32x32              3x3           0        0
        total                                           224  221,184
        """
        from npconv.nn.summary import summarize

        return summarize(self, input_shape)

    # ----------------------------------------------------------------------------------------------------------------
    # Printing
    # ----------------------------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """Return what stands between the parentheses when this module, without those inside it, is printed."""
        return ""

    def _unusual(self, **defaults: Any) -> str:
        """``, name=value`` for each of these attributes that is there and not at its default."""
        shown = {name: (repr(getattr(self, name, usual)), repr(usual)) for name, usual in defaults.items()}
        return "".join(f", {name}={value}" for name, (value, usual) in shown.items() if value != usual)

    def __repr__(self) -> str:
        children = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children()]
        inside = "".join(f"\n  {child}" for child in children) + "\n" if children else ""
        return f"{type(self).__name__}({self.describe()}{inside})"


def joined_name(prefix: str, name: str) -> str:
    """Return the dotted name of what is called `name` in the module `prefix`; either may be empty."""
    return f"{prefix}.{name}" if prefix and name else prefix or name
