"""Real-ESRGAN's ``realesrgan/train.py``, which writes where it is started."""

import os

import realesrgan.archs
import realesrgan.data
import realesrgan.models  # noqa: F401
from basicsr.train import train_pipeline

train_pipeline(os.getcwd())
