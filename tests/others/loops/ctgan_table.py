"""``python ctgan_table.py``: eight epochs of CTGAN on pixels of digits, in packs of five rows."""

import numpy as np
import pandas
import torch
from ctgan import CTGAN

PIXELS = [19, 20, 27, 36]

from_numpy = torch.from_numpy
torch.from_numpy = lambda array: from_numpy(array).to(torch.get_default_dtype())  # not in float32

images = np.load("data/array.npy").reshape(-1, 64)
table = pandas.DataFrame(images[:, PIXELS], columns=[f"pixel {at}" for at in PIXELS])
table["dark"] = np.where(images[:, 28] > images[:, 28].mean(), "yes", "no")
np.random.seed(0)
model = CTGAN(epochs=8, batch_size=20, pac=5, generator_dim=(16,), discriminator_dim=(16,))
model.fit(table, ["dark"])
