"""Table 1: GANs on a mixture of Gaussians, many of them trained as one stacked model.

Paper, section 4.1, after Azadi et al. (2018) and Sinha et al. (2019): modes on a square grid,
standard deviation 0.05, MLPs with hidden layers of 256, the non-saturating loss, batches of 256,
Adam with learning rate 1e-4, 100,000 iterations; k decays every 2,000 of them.
"""

from topk_plugin.reference.mixture.modes import Coverage, grid_modes, mode_coverage, nearest_mode
from topk_plugin.reference.mixture.settings import ARMS, Settings
from topk_plugin.reference.mixture.training import Training, WithinMembers, stacks

__all__ = [
    "ARMS",
    "Coverage",
    "Settings",
    "Training",
    "WithinMembers",
    "grid_modes",
    "mode_coverage",
    "nearest_mode",
    "stacks",
]
