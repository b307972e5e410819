"""DMD2's ``main/edm/train_edm.py`` on digits, from a small network that was not trained."""

import pickle

import numpy as np
import torch
from main.edm import edm_network, train_edm


class Digits(torch.utils.data.Dataset):
    def __init__(self, path):
        self.images = torch.from_numpy(np.load(path)) / 2 + 0.5

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        return {"images": self.images[number], "class_labels": torch.tensor([number % 10])}


def small():
    return {
        "augment_dim": 0, "model_channels": 32, "channel_mult": [1, 2], "channel_mult_emb": 1,
        "num_blocks": 1, "attn_resolutions": [], "dropout": 0.0, "label_dropout": 0,
    }  # fmt: skip


edm_network.get_imagenet_edm_config, train_edm.LMDBDataset = small, Digits
args = train_edm.parse_args()
with open(args.model_id, "wb") as file:
    pickle.dump({"ema": edm_network.get_edm_network(args)}, file)
trainer = train_edm.Trainer(args)
trainer.step = 1  # at step 0 pictures are drawn
trainer.train()
