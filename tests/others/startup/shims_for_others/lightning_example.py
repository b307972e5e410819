"""Four epochs on the CPU, of few images, where the example has no argument for it."""

from lightning.pytorch import Trainer
from lightning.pytorch.demos.mnist_datamodule import MNISTDataModule


def with_defaults(kind, **defaults):
    build = kind.__init__

    def __init__(self, *args, **kwargs):
        build(self, *args, **kwargs | defaults)

    kind.__init__ = __init__


off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
with_defaults(Trainer, accelerator="cpu", max_epochs=4, **off)
with_defaults(MNISTDataModule, val_split=8, num_workers=0, batch_size=8)
