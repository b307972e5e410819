"""Runs a script with top-k by hand in it: python by_hand.py WRAPS SCRIPT ARGUMENTS...

WRAPS is a JSON list of :class:`pytorch_gan.Wrap`. The script's text stays; its tree gets a call
around each of these expressions, whose value is the scores, or a call of the critic. Nothing of
the plugin is used here.
"""

import ast
import inspect
import json
import os
import sys
import types

import torch

GAMMA, NU = 0.8, 0.5


class Kept(torch.autograd.Function):
    """The identity, whose backward keeps the rows of a mask, times B/k."""

    @staticmethod
    def forward(ctx, mask, *heads):
        ctx.mask = mask
        return tuple(head.view_as(head) for head in heads)

    @staticmethod
    def backward(ctx, *gradients):
        scale = len(ctx.mask) / ctx.mask.sum()

        def masked(gradient):
            rows = ctx.mask.view(-1, *[1] * (gradient.dim() - 1))
            return torch.where(rows, gradient * scale, torch.zeros_like(gradient))

        return None, *(None if g is None else masked(g) for g in gradients)


def best(heads, low, epoch):
    """A mask of the k best rows by the average of ``heads``, each the average of its numbers."""
    scores = sum(head.detach().reshape(len(head), -1).mean(1) for head in heads)
    k = int(max(GAMMA**epoch, NU) * len(scores) + 1e-9)
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[torch.argsort(scores, descending=not low, stable=True)[:k]] = True
    return mask


def keep_scores(scores, epoch, low, heads):
    """``scores``, of which the best rows have a gradient; of several outputs ``heads``."""
    if isinstance(scores, torch.Tensor):
        return Kept.apply(best([scores], low, epoch), scores)[0]
    outputs = list(scores)
    kept = Kept.apply(best([outputs[h] for h in heads], low, epoch), *(outputs[h] for h in heads))
    for head, one in zip(heads, kept, strict=True):
        outputs[head] = one
    return outputs


def keep_inside(call, epoch, low, heads):
    """``call()``, a method that averages what ``forward`` of its module returns."""
    critic = inspect.getclosurevars(call)
    (critic,) = [v for v in critic.globals.values() if isinstance(v, torch.nn.Module)]
    forward = critic.forward
    critic.forward = lambda x: keep_scores(forward(x), epoch, low, heads)
    try:
        return call()
    finally:
        del critic.forward


class KeptInput(torch.autograd.Function):
    """The identity before a critic that is still to score."""

    @staticmethod
    def forward(ctx, x, masks):
        ctx.masks = masks
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        (mask,) = ctx.masks
        rows = mask.view(-1, *[1] * (gradient.dim() - 1))
        scale = len(mask) / mask.sum()
        return torch.where(rows, gradient * scale, torch.zeros_like(gradient)), None


def keep_input(critic, x, epoch, low, heads):
    """``critic(x)``, where only the best rows of ``x`` get a gradient: the critic's is whole.

    The same for critics that have no BatchNorm, where one backward is both networks'.
    """
    masks = []
    scores = critic(KeptInput.apply(x, masks))
    masks.append(best([scores], low, epoch))
    return scores


FORMS = {"scores": keep_scores, "inside": keep_inside, "input": keep_input}


class Wrapping(ast.NodeTransformer):
    """Puts the calls around the expressions of ``wraps``."""

    def __init__(self, wraps):
        self.wraps, self.seen = wraps, [0] * len(wraps)

    def visit(self, node):
        node = self.generic_visit(node)
        if not isinstance(node, ast.expr):
            return node
        text = ast.unparse(node)
        for place, wrap in enumerate(self.wraps):
            if text != wrap["expression"]:
                continue
            self.seen[place] += 1
            if self.seen[place] == wrap["occurrence"]:
                return ast.copy_location(wrapped(node, wrap), node)
        return node


def wrapped(node, wrap):
    form = wrap["form"]
    what = f"lambda: {ast.unparse(node)}" if form == "inside" else ast.unparse(node)
    if form == "input":
        what = f"{ast.unparse(node.func)}, {', '.join(map(ast.unparse, node.args))}"
    call = f"__by_hand_{form}({what}, epoch, {wrap['low']}, {tuple(wrap['heads'])})"
    return ast.parse(call, mode="eval").body


def main(wraps, script, *arguments):
    with open(script) as file:
        tree = ast.parse(file.read(), script)
    wrapping = Wrapping(json.loads(wraps))
    tree = ast.fix_missing_locations(wrapping.visit(tree))
    for wrap, seen in zip(wrapping.wraps, wrapping.seen, strict=True):
        assert seen >= wrap["occurrence"], f"{script}: {wrap} was not found"
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    module.__dict__.update({f"__by_hand_{form}": keep for form, keep in FORMS.items()})
    exec(compile(tree, script, "exec"), module.__dict__)


if __name__ == "__main__":
    main(*sys.argv[1:])
