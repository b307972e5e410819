"""Projected GAN: the logits of its four critics, one tensor, in the phases of the generator."""

from collections.abc import Callable
from typing import Any

from topk_plugin import Adapter
from topk_plugin.patches.projected_gan import PATCH


def missing(module: str) -> Callable[..., Any]:
    """What local data does without."""

    def use(*args: Any, **kwargs: Any) -> Any:
        raise ModuleNotFoundError(f"No module named {module!r}: it is needed here", name=module)

    return use


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
