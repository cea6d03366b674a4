"""Losses: a number to make small, and the gradient that training starts from."""

from __future__ import annotations

from types import ModuleType

from npconv.nn.arguments import Array, namespace
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

    Notes
    -----
    The largest logit of each row is subtracted before the exponential, so that nothing overflows. float16 is computed
    in float32.

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
        wide = logits.astype(xp.result_type(logits.dtype, xp.float32), copy=False)
        shifted = wide - wide.max(axis=1, keepdims=True)
        log_p = shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
        self.keep((log_p, labels, logits.dtype))
        return -float(log_p[xp.arange(len(labels)), labels].mean())

    def backward(self) -> Array:
        """Return ``(softmax(logits) - onehot(labels)) / N``; see `Loss.backward`."""
        log_p, labels, dtype = self.recall()
        xp = namespace("logits", log_p)
        gradient = xp.exp(log_p)
        gradient[xp.arange(len(labels)), labels] -= 1
        return (gradient / len(labels)).astype(dtype, copy=False)


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
