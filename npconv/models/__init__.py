"""Networks that are known by name: LeNet-5, MobileNet v1 and v2, ResNet-18, made of `npconv.nn` alone.

Each is a function that returns a `npconv.nn.Sequential`. Where torchvision has the network, structure and names of
parameters are torchvision's, so that weights move over with ``load_state_dict``.
"""

from __future__ import annotations

from npconv.models.lenet import lenet5
from npconv.models.mobilenet import mobilenet_v1, mobilenet_v2
from npconv.models.resnet import resnet18

__all__ = ["lenet5", "mobilenet_v1", "mobilenet_v2", "resnet18"]
