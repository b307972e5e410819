"""``python timegan.py``: TimeGAN on digits, whose eight rows are its eight times."""

import argparse
from pathlib import Path

import numpy as np
from models.timegan import TimeGAN
from models.utils import timegan_trainer

TIMES, FEATURES = 8, 8

series = np.load("data/array.npy")[:, 0] / 2 + 0.5
Path("out").mkdir()
settings = argparse.Namespace(
    device="cpu", exp="digits", model_path="out", feature_dim=FEATURES, Z_dim=FEATURES,
    hidden_dim=6, num_layers=2, max_seq_len=TIMES, padding_value=-1.0, batch_size=8,
    emb_epochs=2, sup_epochs=4, learning_rate=1e-2, dis_thresh=0.15,
)  # fmt: skip
timegan_trainer(TimeGAN(settings), series, np.full(len(series), TIMES), settings)
