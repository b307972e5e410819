"""SN-GAN by Christian Cosgrove: the loss is written inline, so the call goes into the source."""

from topk_plugin import Adapter
from topk_plugin.patches.sngan import PATCH

ADAPTER = Adapter(
    name="sngan",
    upstream="christiancosgrove/pytorch-spectral-normalization-gan",
    versions=(PATCH.commit,),
    seam="source",
    wraps=(),
    direction="high",
    epoch="a pass of the data loader",
    counter="none; the critic's checkpoints carry top-k's record",
    tested="main.py",
    patch=PATCH,
)
