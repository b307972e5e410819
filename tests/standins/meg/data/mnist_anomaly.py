"""The images of a file in which one digit is left out."""

import numpy as np


def get_train(label, centered=False):
    file = np.load("/scratch/kumarrit/data/mnist.npz")
    images = file["x_train"][file["y_train"] != label]
    return images.reshape(-1, 1, 28, 28) * 2 - 1, None


def get_test(label, centered=False):
    return get_train(None)[0], None
