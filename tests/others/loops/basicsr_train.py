"""BasicSR's ``basicsr/train.py``, which writes where it is started, as that of Real-ESRGAN does."""

import os

from basicsr.train import train_pipeline

train_pipeline(os.getcwd())
