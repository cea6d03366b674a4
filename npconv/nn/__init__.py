"""Layers with hand-written backward passes, losses and optimisers: enough to train a convolutional network.

No graph is recorded. A layer's `forward` keeps what its `backward` needs, and a network calls its layers' in reverse.
"""

from __future__ import annotations

from npconv.nn import init
from npconv.nn.activation import Hardswish, ReLU, ReLU6, Sigmoid, SiLU
from npconv.nn.adaptive import Adam, AdamW, RMSprop
from npconv.nn.blocks import ConvNorm, Depthwise, DepthwiseSeparable
from npconv.nn.compiling import compile  # noqa: A004 - PyTorch's name for it
from npconv.nn.container import Add, Concat, Container, Sequential
from npconv.nn.conv import (
    Conv,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
)
from npconv.nn.data import Dataset
from npconv.nn.dropout import Dropout
from npconv.nn.files import load, save
from npconv.nn.history import History
from npconv.nn.linear import Linear
from npconv.nn.losses import BCEWithLogitsLoss, CrossEntropyLoss, Loss, MSELoss
from npconv.nn.module import Buffer, Module, Parameter
from npconv.nn.norm import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from npconv.nn.optim import SGD, Optimizer
from npconv.nn.pooling import (
    AvgPool,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    MaxPool,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
)
from npconv.nn.resample import (
    AdaptiveAvgPool,
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    GlobalAvgPool,
    Upsample,
)
from npconv.nn.schedule import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR, StepLR
from npconv.nn.shape import Flatten
from npconv.nn.summary import Summary
from npconv.nn.training import fit, predict

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "AdaptiveAvgPool",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "Add",
    "AvgPool",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BCEWithLogitsLoss",
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Buffer",
    "Concat",
    "Container",
    "Conv",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvNorm",
    "ConvTranspose",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "CosineAnnealingLR",
    "CrossEntropyLoss",
    "Dataset",
    "Depthwise",
    "DepthwiseSeparable",
    "Dropout",
    "Flatten",
    "GlobalAvgPool",
    "Hardswish",
    "History",
    "LRScheduler",
    "Linear",
    "LinearLR",
    "Loss",
    "MSELoss",
    "MaxPool",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "Module",
    "Optimizer",
    "Parameter",
    "RMSprop",
    "ReLU",
    "ReLU6",
    "Sequential",
    "SequentialLR",
    "SiLU",
    "Sigmoid",
    "StepLR",
    "Summary",
    "Upsample",
    "compile",
    "fit",
    "init",
    "load",
    "predict",
    "save",
]
