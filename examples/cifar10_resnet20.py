"""ResNet-20 on CIFAR-10: `trimtab fit examples/cifar10_resnet20.py --max-drop 0.01`."""

from cifar10 import resnet_task

from trimtab.core.task import Task


def task() -> Task:
    """The trained network and its data."""
    return resnet_task(blocks=3)
