"""MSGAN, a conditional GAN with a mode-seeking term: its DCGAN and Pix2Pix variants."""

from importlib import import_module
from typing import Any

from topk_plugin import Adapter, missing
from topk_plugin.patches.msgan import PATCH


def summary_writer(*args: Any, **kwargs: Any) -> Any:
    """torch's own, which has the methods of tensorboardX."""
    return import_module("torch.utils.tensorboard").SummaryWriter(*args, **kwargs)


ADAPTER = Adapter(
    name="msgan",
    upstream="HelenMao/MSGAN",
    versions=(PATCH.commit,),
    seam="source",
    wraps=(),
    direction="high",
    epoch="a pass of the data loader",
    counter="ep in the checkpoints of the DCGAN variant; --epoch_count of the Pix2Pix one",
    tested="train.py of DCGAN-Mode-Seeking and Pix2Pix-Mode-Seeking",
    stubs={
        "tensorboardX": {"SummaryWriter": summary_writer},
        "dominate": {"document": missing("dominate")},
        "dominate.tags": {},
    },
    patch=PATCH,
)
