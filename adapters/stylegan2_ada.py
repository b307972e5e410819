"""StyleGAN2-ADA: the critic's logits in the phases of the generator."""

from topk_plugin import Adapter, missing
from topk_plugin.patches.stylegan2_ada import PATCH

ADAPTER = Adapter(
    name="stylegan2_ada",
    upstream="NVlabs/stylegan2-ada-pytorch",
    versions=(PATCH.commit,),
    seam="source",
    wraps=(),
    direction="high",
    epoch="a pass over the data, by cur_nimg, seen when an iteration begins",
    counter="none: a run that resumes counts from 0, so --start-epoch tells",
    tested="train.py: noaug, ada",
    stubs={"requests": {"Session": missing("requests")}},  # downloads
    patch=PATCH,
)
