"""WassersteinGAN: its critics average inside, and the lowest scores are those of real samples."""

from topk_plugin import Adapter
from topk_plugin.patches.wgan import PATCH

ADAPTER = Adapter(
    name="wgan",
    upstream="martinarjovsky/WassersteinGAN",
    versions=(PATCH.commit,),
    seam="source",
    wraps=(),
    direction="low",
    epoch="a pass of the data loader",
    counter="none; the critic's checkpoints carry top-k's record, and --netD reads it",
    tested="main.py: DCGAN, without BatchNorm, MLP",
    patch=PATCH,
)
