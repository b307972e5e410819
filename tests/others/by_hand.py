"""Runs a script with top-k by hand in it: python by_hand.py EPOCH WRAPS SCRIPT ARGUMENTS...

WRAPS is a JSON list of :class:`rows.Wrap`, EPOCH as ``rows.Row`` has it. The text of the script,
and of the modules that it imports, stays; their trees get a call around each of these expressions,
whose value is the scores, or a call of the critic. Nothing of the plugin is used here.
"""

import ast
import builtins
import importlib.machinery
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
    output = critic(KeptInput.apply(x, masks))
    masks.append(best([output[head] for head in heads] or [output], low, epoch))
    return output


def keep_last(lists, epoch, low, heads):
    """Several outputs, the last one of each is scores; the average of them all is ranked."""
    last = [outputs[-1] for outputs in lists]
    kept = Kept.apply(best(last, low, epoch), *last)
    return [[*outputs[:-1], one] for outputs, one in zip(lists, kept, strict=True)]


FORMS = {"scores": keep_scores, "inside": keep_inside, "input": keep_input, "last": keep_last}


class Passes:
    """Counts passes where no expression tells them: by the steps of each wrap."""

    def __init__(self):
        self.steps = {}

    def __call__(self, place, steps_a_pass):
        self.steps[place] = self.steps.get(place, -1) + 1
        return self.steps[place] // steps_a_pass


class Wrapping(ast.NodeTransformer):
    """Puts the calls around the expressions of ``wraps``."""

    def __init__(self, wraps, epoch):
        self.wraps, self.epoch, self.seen = wraps, epoch, [0] * len(wraps)

    def visit(self, node):
        node = self.generic_visit(node)
        if not isinstance(node, ast.expr) or isinstance(getattr(node, "ctx", None), ast.Store):
            return node
        text = ast.unparse(node)
        for place, wrap in enumerate(self.wraps):
            if text != wrap["expression"]:
                continue
            self.seen[place] += 1
            if self.seen[place] == wrap["occurrence"]:
                return ast.copy_location(self.wrapped(node, wrap, place), node)
        return node

    def wrapped(self, node, wrap, place):
        form, epoch = wrap["form"], self.epoch
        what = f"lambda: {ast.unparse(node)}" if form == "inside" else ast.unparse(node)
        if form == "input":
            what = f"{ast.unparse(node.func)}, {', '.join(map(ast.unparse, node.args))}"
        if isinstance(epoch, int):
            epoch = f"by_hand_passes({wrap['file'], place}, {epoch})"
        call = f"by_hand_{form}({what}, {epoch}, {wrap['low']}, {tuple(wrap['heads'])})"
        return ast.parse(call, mode="eval").body


def compiled(path, source, wraps, epoch):
    """The code of a file."""
    wrapping = Wrapping(wraps, epoch)
    tree = ast.fix_missing_locations(wrapping.visit(ast.parse(source, path)))
    for wrap, seen in zip(wraps, wrapping.seen, strict=True):
        assert seen >= wrap["occurrence"], f"{path}: {wrap} was not found"
    return compile(tree, path, "exec")


def in_modules(wraps, epoch):
    """Wrap what modules have, as they are imported; returns the files that were."""
    files, met, get_code = {wrap["file"] for wrap in wraps}, set(), None

    def with_top_k(loader, fullname):
        path = loader.get_filename(fullname)
        for file in files:
            if path.endswith(f"/{file}"):
                met.add(file)
                mine = [wrap for wrap in wraps if wrap["file"] == file]
                return compiled(path, loader.get_data(path), mine, epoch)
        return get_code(loader, fullname)

    get_code = importlib.machinery.SourceFileLoader.get_code
    importlib.machinery.SourceFileLoader.get_code = with_top_k
    return files, met


def main(epoch, wraps, script, *arguments):
    epoch, wraps = json.loads(epoch), json.loads(wraps)
    for form, keep in FORMS.items():
        setattr(builtins, f"by_hand_{form}", keep)
    builtins.by_hand_passes = Passes()
    files, met = in_modules([wrap for wrap in wraps if wrap["file"]], epoch)
    with open(script) as file:
        code = compiled(script, file.read(), [wrap for wrap in wraps if not wrap["file"]], epoch)
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    module = types.ModuleType("__main__")
    module.__file__ = script
    sys.modules["__main__"] = module
    exec(code, module.__dict__)
    assert files == met, f"never imported: {files - met}"


if __name__ == "__main__":
    main(*sys.argv[1:])
