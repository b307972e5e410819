"""HiFi-GAN, a vocoder: both of its critics, with a ranking of its own for each."""

from topk_plugin import Adapter
from topk_plugin.patches.hifigan import PATCH

ADAPTER = Adapter(
    name="hifigan",
    upstream="jik876/hifi-gan",
    versions=(PATCH.commit,),
    seam="source",
    wraps=(),
    direction="high",
    epoch="a pass of the data loader",
    counter="epoch in its checkpoints",
    tested="train.py, on one device",
    patch=PATCH,
)
