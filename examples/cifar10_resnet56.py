"""ResNet-56 on CIFAR-10: `trimtab fit examples/cifar10_resnet56.py --max-drop 0.01`."""

from cifar10 import resnet_task

import trimtab as tt


def task() -> tt.Task:
    """The trained network and its data."""
    return resnet_task(blocks=9)
