"""PyTorch-StudioGAN: top-k of the settings in its YAML files, in place of its own.

Its critics return a dict, and losses are made of other outputs than the score as well: class
logits, embeddings, features. They follow the rows that are kept, unless ``companions`` says "keep",
which is what StudioGAN's own top-k does.
"""

import re
from typing import Any

from topk_plugin import Adapter, missing
from topk_plugin.patches.studiogan import PATCH


def _nothing(*args: Any, **kwargs: Any) -> None:
    """What wandb does where it is not installed."""


def _same(iterable: Any, *args: Any, **kwargs: Any) -> Any:
    """A progress bar that is not shown."""
    return iterable


def _version(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)[:3]]


ADAPTER = Adapter(
    name="studiogan",
    upstream="POSTECH-CVLab/PyTorch-StudioGAN",
    versions=(PATCH.commit,),
    seam="source",
    wraps=(),
    direction="high",
    companions="follow",
    epoch="a pass of the data loader, seen when an iteration begins",
    counter="epoch in its critic's checkpoints",
    tested="src/main.py: resnet, deep_conv, StyleGAN2; W/O, AC, 2C, ADC, SPD",
    config_flags=("-cfg", "--cfg_file"),
    stubs={
        "wandb": dict.fromkeys(("init", "log", "finish", "Image"), _nothing),
        "tqdm": {"tqdm": _same, "trange": _same},
        "seaborn": dict.fromkeys(("scatterplot", "color_palette"), missing("seaborn")),
        "h5py": {"File": missing("h5py")},
        "requests": {"Session": missing("requests")},
        "timm.models.layers": dict.fromkeys(
            ("DropPath", "to_2tuple", "trunc_normal_"), missing("timm")
        ),
        "kornia.filters": dict.fromkeys(("get_gaussian_kernel2d", "filter2d"), missing("kornia")),
        "pkg_resources": {"parse_version": _version},
        "distutils.util": {"strtobool": missing("distutils")},
    },
    patch=PATCH,
)
