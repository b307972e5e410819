"""A toy upstream: each way a loss can be reached, an adapter for it, and what its functions are."""

import importlib
import sys

import torch
import wrapt
from losses import make_topk

from topk_plugin import Adapter, Wrap, scores_argument
from topk_plugin.seams.call import CallSeam

LOSSES = '''
"""A toy upstream: each way a loss can be reached."""

def generator_loss(scores, weight=1.0):
    return -(weight * scores).mean()

def outer_loss(scores):
    return generator_loss(scores) + inner_loss(scores=scores)

def inner_loss(scores):
    if len(scores) == 3:
        raise RuntimeError("not 3")
    return -scores.mean()

class Base:
    def method(self, scores):
        return -scores.mean()

class Losses(Base):
    @staticmethod
    def static(scores):
        return -scores.mean()

    @classmethod
    def of_class(cls, scores):
        return -scores.mean()

    def own(self, scores):
        return -scores.mean()
'''
TRAINER = '''
"""Looks the loss up under an alias of its own."""
from toygan.losses import generator_loss as alias

def loss_by_alias(scores):
    return alias(scores)
'''
NAMES = {
    "generator_loss": "(scores, weight=1.0)",
    "outer_loss": "(scores)",
    "inner_loss": "(scores)",
    "Losses.method": "(self, scores)",  # inherited
    "Losses.static": "(scores)",
    "Losses.of_class": "(scores)",
    "Losses.own": "(self, scores)",
}
GATE = scores_argument("scores")
ADAPTER = Adapter(
    name="toy",
    upstream="someone/toygan",
    versions=("1.0",),
    seam="call",
    wraps=(
        *(Wrap("toygan.losses", name, signature, GATE) for name, signature in NAMES.items()),
        Wrap("toygan.trainer", "alias", "(scores, weight=1.0)", GATE),
    ),
    epoch="a pass",
    counter="none",
    tested="here",
)


def write(folder, losses=LOSSES):
    (folder / "toygan").mkdir(parents=True, exist_ok=True)
    (folder / "toygan/__init__.py").write_text("__version__ = '1.0'\n")
    (folder / "toygan/losses.py").write_text(losses)
    (folder / "toygan/trainer.py").write_text(TRAINER)


TOY = ("toygan", "outsider", "present", "lost")


def forget():
    """As if nothing of the toy had been imported."""
    for name in [n for n in sys.modules if n.partition(".")[0] in TOY]:
        del sys.modules[name]


def load():
    return importlib.import_module("toygan.losses"), importlib.import_module("toygan.trainer")


def make_seam(root, adapter=ADAPTER, topk=None, **arguments):
    return CallSeam(adapter, topk or make_topk(2, batch=4), [root], **arguments)


def functions(losses, trainer):
    """What the toy's modules and classes themselves define, by name."""
    return {
        (owner.__name__, name): value
        for owner in (losses, trainer, losses.Base, losses.Losses)
        for name, value in vars(owner).items()
        if not name.startswith("__")
    }


def is_ours(function):
    return isinstance(function, wrapt.FunctionWrapper)


def is_gated(loss):
    """Whether a loss of 4 scores sends 2 of them a gradient."""
    scores = torch.tensor([3.0, 1.0, 2.0, 4.0], requires_grad=True)
    loss(scores).backward()
    kept = scores.grad.nonzero().flatten().tolist()
    assert kept in ([0, 3], [0, 1, 2, 3])
    return kept == [0, 3]


def every_loss(losses, trainer):
    thing = losses.Losses()
    return [
        *(losses.generator_loss, losses.outer_loss, losses.inner_loss),
        *(thing.method, thing.static, thing.of_class, thing.own),
        *(losses.Losses.static, losses.Losses.of_class),
        *(trainer.loss_by_alias, lambda scores: losses.generator_loss(weight=2, scores=scores)),
    ]
