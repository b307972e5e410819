"""Tables 3 to 5 and the later version's: GANs of images, with and without top-k, by one loop.

Paper, sections 5.2, 5.3 and 6. ``models.MODELS`` says what each GAN is, ``models.ARMS`` where
top-k comes in; one loop trains it: some critic steps, then one generator step. Top-k is one
line in the generator's loss, and for Table 5 one in the critic's. Sizes and lengths are settings.
Under torchrun the batch is divided among the ranks.

All arms of a model have the same initial weights, data order and noise, whatever the number of
ranks: each rank draws the whole batch's noise and takes its rows. BatchNorm, k, and MSGAN's ratio
of means go by what a device sees at a time.
"""

from topk_plugin.reference.images.preparation import prepare
from topk_plugin.reference.images.settings import Settings
from topk_plugin.reference.images.training import DISTRIBUTED, Training
from topk_plugin.reference.training import one_by_one as stacks

__all__ = ["DISTRIBUTED", "Settings", "Training", "prepare", "stacks"]
