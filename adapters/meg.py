"""Maximum entropy generators (MEG) for energy-based models, and the WGAN-GP beside them."""

from importlib import import_module
from typing import Any

from topk_plugin import Adapter
from topk_plugin.patches.meg import PATCH


def summary_writer(*args: Any, **kwargs: Any) -> Any:
    """torch's own, which has the methods of tensorboardX."""
    return import_module("torch.utils.tensorboard").SummaryWriter(*args, **kwargs)


ADAPTER = Adapter(
    name="meg",
    upstream="ritheshkumar95/energy_based_generative_models",
    versions=(PATCH.commit,),
    seam="source",
    wraps=(),
    # none stated: realistic is low in the EBM scripts and high in the WGAN ones, as the loss says
    direction=None,
    epoch="a pass over the data in the anomaly scripts; a pass of the data loader for CIFAR-10 and "
    "CelebA; the other scripts have none: --every N",
    counter="none; the critic's checkpoints carry top-k's record",
    tested="anomaly_mnist, ebm_toy, ebm_mnist, ebm_celeba, wgan-gp_mnist; others of scripts/train "
    "with the tests' own data",
    stubs={"tensorboardX": {"SummaryWriter": summary_writer}},
    patch=PATCH,
)
