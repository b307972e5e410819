"""StyleGAN2-ADA: the critic's logits in the phases of the generator."""

from collections.abc import Callable
from typing import Any

from topk_plugin import Adapter
from topk_plugin.patches.stylegan2_ada import PATCH


def missing(module: str) -> Callable[..., Any]:
    """What local data does without."""

    def use(*args: Any, **kwargs: Any) -> Any:
        raise ModuleNotFoundError(f"No module named {module!r}: it is needed here", name=module)

    return use


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
