"""DCGAN of pytorch/examples: the loss is written inline, so the call goes into the source."""

from topk_plugin import Adapter
from topk_plugin.patches.dcgan import PATCH

ADAPTER = Adapter(
    name="dcgan",
    upstream="pytorch/examples",
    versions=(PATCH.commit,),
    seam="source",
    wraps=(),
    direction="high",
    epoch="a pass of the data loader",
    counter="none; the critic's checkpoints carry top-k's record, and --netD reads it",
    tested="dcgan/main.py",
    patch=PATCH,
)
