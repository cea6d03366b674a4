"""Losses: a number to make small, and the gradient that training starts from."""

from __future__ import annotations

from types import ModuleType

from npconv.nn.activation import sigmoid
from npconv.nn.arguments import Array, check_shape, floating, fraction, namespace, widened
from npconv.nn.module import Memory


class Loss(Memory):
    """A number that measures how far a prediction is from its target. A subclass defines `forward` and `backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> class AbsoluteError(nc.nn.Loss):
    ...     def forward(self, prediction, target):
    ...         self.keep(np.sign(prediction - target))
    ...         return float(abs(prediction - target).sum())
    ...
    ...     def backward(self):
    ...         return self.recall()
    >>> loss = AbsoluteError()
    >>> loss(np.array([1.0, 2.0]), np.array([0.0, 4.0])), loss.backward()
    (3.0, array([ 1., -1.]))
    """

    def __call__(self, prediction: Array, target: Array) -> float:
        """Run `forward`."""
        return self.forward(prediction, target)

    def forward(self, prediction: Array, target: Array) -> float:
        """Compute the loss.

        Parameters
        ----------
        prediction, target : array

        Returns
        -------
        float
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(prediction, target)")

    def backward(self) -> Array:
        """Return the gradient of the last loss in its prediction.

        Returns
        -------
        array
            Of the shape and dtype of the prediction.

        Raises
        ------
        RuntimeError
            Unless the loss was computed before, once for each backward pass.
        """
        raise NotImplementedError(f"{type(self).__name__} must define backward()")


class CrossEntropyLoss(Loss):
    """Softmax and negative log-likelihood, the mean over the batch: ``mean(logsumexp(logits) - logits[label])``.

    Parameters
    ----------
    label_smoothing : float
        From 0 to 1: the share of the target that is spread over all classes evenly, instead of lying on the label.

    Raises
    ------
    ValueError, TypeError
        If `label_smoothing` is not such a number.

    Notes
    -----
    The largest logit of each row is subtracted before the exponential, so that nothing overflows. float16 is computed
    in float32.

    References
    ----------
    C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, *Rethinking the Inception architecture for computer
    vision*, arXiv:1512.00567, for label smoothing.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> loss = nc.nn.CrossEntropyLoss()
    >>> logits, labels = np.zeros((2, 4)), np.array([0, 3])
    >>> round(loss(logits, labels), 4)
    1.3863
    >>> loss.backward()
    array([[-0.375,  0.125,  0.125,  0.125],
           [ 0.125,  0.125,  0.125, -0.375]])
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = fraction("label_smoothing", label_smoothing)

    def forward(self, prediction: Array, target: Array) -> float:
        """Compute the loss.

        Parameters
        ----------
        prediction : array
            ``(N, classes)``, the logits: any real numbers, of a floating dtype.
        target : array
            ``(N,)``, the labels: integers from 0 to ``classes - 1``.

        Returns
        -------
        float

        Raises
        ------
        ValueError, TypeError
            If shape, dtype or range are not as described.
        """
        logits, labels = prediction, target
        xp = _check(logits, labels)
        wide = widened(xp, logits)
        shifted = wide - wide.max(axis=1, keepdims=True)
        log_p = shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
        self.keep((log_p, labels, logits.dtype))
        loss = -float(log_p[xp.arange(len(labels)), labels].mean())
        if self.label_smoothing:
            loss = (1 - self.label_smoothing) * loss - self.label_smoothing * float(log_p.mean())
        return loss

    def backward(self) -> Array:
        """Return ``(softmax(logits) - target) / N``, the target smoothed or not; see `Loss.backward`."""
        log_p, labels, dtype = self.recall()
        xp = namespace("logits", log_p)
        gradient = xp.exp(log_p)
        gradient[xp.arange(len(labels)), labels] -= 1 - self.label_smoothing
        if self.label_smoothing:
            gradient -= self.label_smoothing / log_p.shape[1]
        return (gradient / len(labels)).astype(dtype, copy=False)


class _Elementwise(Loss):
    """Losses that are the mean or the sum of one number per element. A subclass defines these and their slopes."""

    def __init__(self, *, reduction: str = "mean") -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r:.60}")
        self.reduction = reduction

    def forward(self, prediction: Array, target: Array) -> float:
        """Compute the loss.

        Parameters
        ----------
        prediction, target : array
            Of one shape, not empty, and of floating dtypes.

        Returns
        -------
        float

        Raises
        ------
        ValueError, TypeError
            If shapes, dtypes or values are not as described.
        """
        xp = floating("prediction", prediction)
        if floating("target", target) is not xp:
            raise TypeError(
                f"prediction and target must live on the same device, got {type(prediction)} and {type(target)}"
            )
        check_shape("target", target, tuple(prediction.shape), "that of the prediction")
        if not prediction.size:
            raise ValueError(f"prediction must not be empty, got shape {prediction.shape}")
        losses, slopes = self._losses_and_slopes(widened(xp, prediction), widened(xp, target))
        self.keep((slopes, prediction.dtype))
        return float(losses.mean() if self.reduction == "mean" else losses.sum())

    def _losses_and_slopes(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        raise NotImplementedError

    def backward(self) -> Array:
        """Return the gradient of the last loss in its prediction; see `Loss.backward`."""
        slopes, dtype = self.recall()
        return (slopes / slopes.size if self.reduction == "mean" else slopes).astype(dtype, copy=False)


class MSELoss(_Elementwise):
    """Mean squared error, ``mean((prediction - target)**2)`` over all elements.

    Parameters
    ----------
    reduction : {"mean", "sum"}

    Raises
    ------
    ValueError
        If `reduction` is neither.

    Notes
    -----
    Takes arrays of one shape and of floating dtypes; float16 is computed in float32.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> loss = nc.nn.MSELoss()
    >>> loss(np.array([1.0, 2.0]), np.array([0.0, 4.0]))
    2.5
    >>> loss.backward()
    array([ 1., -2.])
    """

    def _losses_and_slopes(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        error = prediction - target
        return error * error, 2 * error


class BCEWithLogitsLoss(_Elementwise):
    """Binary cross-entropy of ``p = sigmoid(logits)``: the mean of ``-target * log(p) - (1 - target) * log(1 - p)``.

    Parameters
    ----------
    reduction : {"mean", "sum"}

    Raises
    ------
    ValueError
        If `reduction` is neither.

    Notes
    -----
    Takes arrays of one shape and of floating dtypes, targets from 0 to 1; float16 is computed in float32. It is
    computed as ``max(x, 0) - x * target + log1p(exp(-abs(x)))``, which neither overflows nor takes a logarithm of zero.

    Examples
    --------
    >>> import numpy as np
    >>> import npconv as nc
    >>> loss = nc.nn.BCEWithLogitsLoss()
    >>> round(loss(np.array([0.0, 1000.0]), np.array([1.0, 1.0])), 4)
    0.3466
    >>> loss.backward()
    array([-0.25,  0.  ])
    """

    def _losses_and_slopes(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        # Not `outside.any()`: a NaN is no target either.
        if not ((target >= 0) & (target <= 1)).all():
            raise ValueError(f"target must be from 0 to 1, got values from {target.min()} to {target.max()}")
        xp, x = namespace("prediction", prediction), prediction
        losses = xp.maximum(x, 0) - x * target + xp.log1p(xp.exp(-abs(x)))
        # sigmoid(x) - target, from the smaller of sigmoid(x) and 1 - sigmoid(x): near a right answer both cancel.
        p, rest = sigmoid(xp, x)
        return losses, xp.where(x < 0, p - target, (1 - target) - rest)


def _check(logits: Array, labels: Array) -> ModuleType:
    """Return the namespace of the logits if the labels fit them."""
    xp = namespace("logits", logits)
    if namespace("labels", labels) is not xp:
        raise TypeError(f"logits and labels must live on the same device, got {type(logits)} and {type(labels)}")
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits must have shape (N, classes), none of them zero, got {logits.shape}")
    if logits.dtype.kind != "f":
        raise TypeError(f"logits must be of a floating dtype, got {logits.dtype}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels must have shape {logits.shape[:1]}, one for each row of logits, got {labels.shape}")
    classes = logits.shape[1]
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        first = int(outside.argmax())
        raise ValueError(f"labels must be from 0 to {classes - 1}, got {int(labels[first])} at index {first}")
    return xp
