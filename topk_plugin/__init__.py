"""Top-k training for any PyTorch GAN, switched on without editing the GAN's code."""

from topk_plugin.attach import attach
from topk_plugin.config import TopKConfig, add_arguments
from topk_plugin.topk import TopK

__all__ = ["TopK", "TopKConfig", "add_arguments", "attach"]
__version__ = "0.1.0"
