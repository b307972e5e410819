"""Projected GAN: the logits of its four critics, one tensor, in the phases of the generator."""

from topk_plugin import Adapter, missing
from topk_plugin.patches.projected_gan import PATCH

ADAPTER = Adapter(
    name="projected_gan",
    upstream="autonomousvision/projected-gan",
    versions=(PATCH.commit,),
    seam="source",
    wraps=(),
    direction="high",
    epoch="a pass over the data, by cur_nimg, seen when an iteration begins",
    counter="cur_nimg in its snapshots where it restarts; with --resume none: --start-epoch tells",
    tested="train.py: stylegan2, fastgan_lite; --batch-gpu, restarts",
    stubs={"requests": {"Session": missing("requests")}},  # downloads
    patch=PATCH,
)
