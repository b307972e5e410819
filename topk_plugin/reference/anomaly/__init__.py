"""Table 2: finding a digit that was held out of the training, by MEG and by BiGAN.

Paper, section 5.1. MEG is that of Kumar et al. (2019), after
ritheshkumar95/energy_based_generative_models, scripts/train/anomaly_mnist.py; BiGAN that of Zenati
et al. (2018), after houssamzenati/Efficient-GAN-Anomaly-Detection, bigan/run_mnist.py. Either is
trained with and without top-k. The paper gives neither gamma nor nu for this table, so they are
those of its other image experiments, and it has no top-k arm of BiGAN.

Both repositories draw their training part and their test part from two different permutations, so
that four in five of the normal test images were trained on: ``split="original"``. By default the
parts are disjoint. Scores of the two are not comparable, and each score says which one it is.

A detector that knows nothing scores the share of anomalies among the test images, ``chance``:
0.33 to 0.39 on MNIST, which is more than several entries of the paper's table.
"""

from topk_plugin.reference.anomaly.methods import ARMS, Bigan, Meg, Method
from topk_plugin.reference.anomaly.metrics import average_precision, curve_points, trapezoid_area
from topk_plugin.reference.anomaly.settings import Settings
from topk_plugin.reference.anomaly.split import Split, load, prepare, split_images
from topk_plugin.reference.anomaly.training import Training
from topk_plugin.reference.training import one_by_one as stacks

__all__ = [
    "ARMS",
    "Bigan",
    "Meg",
    "Method",
    "Settings",
    "Split",
    "Training",
    "average_precision",
    "curve_points",
    "load",
    "prepare",
    "split_images",
    "stacks",
    "trapezoid_area",
]
