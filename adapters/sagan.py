"""SAGAN by David Keetae Park: the loss is written inline, so the call goes into the source."""

from topk_plugin import Adapter
from topk_plugin.patches.sagan import PATCH

ADAPTER = Adapter(
    name="sagan",
    upstream="heykeetae/Self-Attention-GAN",
    versions=(PATCH.commit,),
    seam="source",
    wraps=(),
    direction="high",
    epoch="as many steps as the data loader has batches",
    counter="--pretrained_model, the number of the step; the critic's checkpoints carry the epoch",
    tested="main.py",
    patch=PATCH,
)
