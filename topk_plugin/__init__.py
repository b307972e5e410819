"""Top-k training for any PyTorch GAN, switched on without editing the GAN's code."""

from pathlib import Path

# in a checkout adapters and patches lie beside the package, and it may hide an installed one
if not (Path(__file__).parent / "adapters").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

from topk_plugin.adapter import Adapter, Wrap, missing
from topk_plugin.config import TopKConfig, add_arguments
from topk_plugin.core.direction import VOTING_STEPS
from topk_plugin.finding.live import find
from topk_plugin.hooks import hookimpl
from topk_plugin.loop.attach import attach
from topk_plugin.plugins.live_view import LiveView
from topk_plugin.seams.call import CallSeam, scores_argument
from topk_plugin.source.rules import Argument, Enclose, Insert, Patch, Place, Replace
from topk_plugin.topk import TopK

__all__ = [
    "Adapter",
    "Argument",
    "CallSeam",
    "Enclose",
    "Insert",
    "LiveView",
    "Patch",
    "Place",
    "Replace",
    "TopK",
    "TopKConfig",
    "VOTING_STEPS",
    "Wrap",
    "add_arguments",
    "attach",
    "find",
    "hookimpl",
    "missing",
    "scores_argument",
]
__version__ = "0.1.0"
