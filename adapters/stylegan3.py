"""StyleGAN3, and StyleGAN2 beside it: the critic's logits in the phases of the generator."""

from topk_plugin import Adapter, missing
from topk_plugin.patches.stylegan3 import PATCH

ADAPTER = Adapter(
    name="stylegan3",
    upstream="NVlabs/stylegan3",
    versions=(PATCH.commit,),
    seam="source",
    wraps=(),
    direction="high",
    epoch="a pass over the data, by cur_nimg, seen when an iteration begins",
    counter="none: a run that resumes counts from 0, so --start-epoch tells",
    tested="train.py: stylegan2 and stylegan3-t; noaug, ada; --batch-gpu",
    stubs={"requests": {"Session": missing("requests")}},  # downloads
    patch=PATCH,
)
