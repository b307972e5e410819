"""CIFAR10 is a folder of images here."""

import torchvision


def folder(root, train=True, transform=None, download=False):
    return torchvision.datasets.ImageFolder(f"{root}/images", transform)


torchvision.datasets.CIFAR10 = folder
