"""DCGAN of pytorch/examples: the loss is written inline, so the call goes into the source."""

from collections.abc import Sequence

from topk_plugin import Adapter, hookimpl
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


@hookimpl
def topk_adapters() -> Sequence[Adapter]:
    """The adapter of this file."""
    return [ADAPTER]
