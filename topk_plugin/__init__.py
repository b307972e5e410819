"""Top-k training for any PyTorch GAN, switched on without editing the GAN's code."""

from topk_plugin.adapter import Adapter, Wrap
from topk_plugin.attach import attach
from topk_plugin.config import TopKConfig, add_arguments
from topk_plugin.hooks import hookimpl
from topk_plugin.seams import CallSeam, scores_argument
from topk_plugin.topk import TopK

__all__ = [
    "Adapter",
    "CallSeam",
    "TopK",
    "TopKConfig",
    "Wrap",
    "add_arguments",
    "attach",
    "hookimpl",
    "scores_argument",
]
__version__ = "0.1.0"
