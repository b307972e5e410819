"""Plugins of one hook each, a generator step that they take part in, and that step by hand."""

import importlib.metadata
import textwrap

import torch
from losses import BATCH, LATENT, LOSSES, Critic, gradients, make_generator

from topk_plugin import Adapter, attach, hooks
from topk_plugin.core.ranking import kept_rows
from topk_plugin.hooks import Hooks, hookimpl
from topk_plugin.plugins import manager

HOOKS = sorted(name for name in vars(Hooks) if name.startswith("topk_"))
LOSS = LOSSES["non-saturating"]


def plugin(hook, body):
    """A plugin of one hook: ``body`` of the hook's arguments, in order."""
    function = {
        "topk_adapters": lambda self: body(),
        "topk_scores": lambda self, output: body(output),
        "topk_fraction": lambda self, progress, config: body(progress, config),
        "topk_select": lambda self, scores, k: body(scores, k),
        "topk_selected": lambda self, selection: body(selection),
        "topk_epoch_ended": lambda self, progress: body(progress),
    }[hook]
    return type("Plugin", (), {hook: hookimpl(function)})()


def noise(batch=BATCH):
    torch.manual_seed(1)
    return torch.randn(batch, LATENT, dtype=torch.float64)


def adapter(name="mine", upstream="somebody/gan"):
    return Adapter(
        name=name,
        upstream=upstream,
        versions=("1.0",),
        seam="call",
        wraps=(),
        epoch="a pass",
        counter="none",
        tested="not",
    )


def networks():
    torch.manual_seed(0)
    return make_generator(), Critic("batch")


GAN = """
    import sys
    import torch
    from torch import nn

    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

        def forward(self, x):
            return self.net(x)

    if __name__ == "__main__":
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        by_hand = sys.argv[1:] == ["by hand"]
        D = Critic()
        G = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        optD, optG = (torch.optim.Adam(net.parameters(), 1e-2) for net in (D, G))
        loader = torch.utils.data.DataLoader(torch.randn(16, 2) + 1, batch_size=8)
        for epoch in range(2):
            for x in loader:
                optD.zero_grad()
                (D(G(torch.randn(8, 3)).detach()).mean() - D(x).mean()).backward()
                optD.step()
                optG.zero_grad()
                scores = D(G(torch.randn(8, 3)))
                (-(scores[::2] if by_hand and epoch else scores).mean()).backward()
                optG.step()
        torch.save([D.state_dict(), G.state_dict()], "weights.pt")
"""


def write(folder, name, text):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(textwrap.dedent(text))


def boom(*arguments):
    raise ZeroDivisionError("boom")


BROKEN = """
    from topk_plugin import hookimpl

    @hookimpl
    def {}():
        raise ZeroDivisionError("boom")
"""


def entry_points(monkeypatch, **values):
    points = [
        importlib.metadata.EntryPoint(name.replace("_", "-"), value, hooks.GROUP)
        for name, value in values.items()
    ]
    monkeypatch.setattr(manager, "_entry_points", lambda: tuple(points))


def fraction(value, asked=None):
    def answer(progress, config):
        if asked is not None:
            asked.append(value)
        return value

    return plugin("topk_fraction", answer)


class KeepBest:
    """The n highest, whatever k is."""

    def __init__(self, n=None):
        self.n = n

    @hookimpl
    def topk_select(self, scores):
        return kept_rows(scores, self.n)


class Rows:
    """Notes the rows that were kept in each generator step's first call."""

    def __init__(self):
        self.kept = []

    def topk_selected(self, selection):
        self.kept.append(selection.calls[0].kept.nonzero().flatten().tolist())


WAYS = ["line A", "score", "shielded", "gather"]


def generator_step(way, topk, loss=LOSS):
    """Gradients of generator and critic in one step, and the rows that were kept."""
    G, D = networks()
    rows = Rows()
    topk.observers.append(rows.topk_selected)
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    if way in ("score", "shielded"):
        with attach(D, topk):
            loss.of(D(G(noise()))).backward()
            found = gradients(G), gradients(D)
            optimizer.step()
    else:
        scores = D(G(noise()))
        if way == "gather":
            scores, index = topk.gather(scores, torch.arange(BATCH))
        loss.of(topk(scores) if way == "line A" else scores).backward()
        found = gradients(G), gradients(D)
        optimizer.step()
    kept = index.tolist() if way == "gather" else rows.kept[-1]
    return *found, kept


def by_hand(rows, loss=LOSS):
    """The same step of the literal form over ``rows``; and all scores."""
    G, D = networks()
    scores = D(G(noise()))
    loss.of(scores[rows]).backward()
    return gradients(G), gradients(D), scores.flatten().tolist()


def settings(way, direction="high"):
    return {"gate": way if way in ("score", "shielded") else "auto", "direction": direction}


class Watch:
    def __init__(self, parameter=None):
        self.parameter, self.steps, self.epochs, self.weights = parameter, [], [], []

    @hookimpl
    def topk_selected(self, selection):
        self.steps.append(selection)
        if self.parameter is not None:
            self.weights.append(self.parameter.detach().clone())

    @hookimpl
    def topk_epoch_ended(self, progress):
        self.epochs.append(progress)
