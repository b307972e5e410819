"""attach() gates the critic that it is given, whatever its calls, and leaves nothing behind."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import types
import weakref
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, WIDTH, Critic, clear, make_generator, make_topk, noise, reals
from stepping import SGD, Setup
from torch import nn
from torch.optim import optimizer as torch_optimizer
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from topk_plugin import TopK, attach
from topk_plugin.errors import ConfigError

pytestmark = pytest.mark.usefixtures("seeded")

# --- what attach leaves behind ------------------------------------------------------------------


class Inherits(Critic):
    """No forward of its own."""


class CallsSuper(Critic):
    def forward(self, x):
        return 1.0 * super().forward(x)


def footprint() -> dict[str, object]:
    """The methods that attach may wrap for a while, as the classes hold them."""
    methods = {
        f"{cls.__qualname__}.{name}": value
        for cls in [
            Critic,
            Inherits,
            CallsSuper,
            nn.Module,
            torch.optim.Optimizer,
            _BaseDataLoaderIter,
            DataLoader,
            *_BaseDataLoaderIter.__subclasses__(),
        ]  # fmt: skip
        for name, value in vars(cls).items()
        if callable(value) or isinstance(value, (classmethod, staticmethod, property))
    }
    hooks = (
        torch_optimizer._global_optimizer_pre_hooks,
        torch_optimizer._global_optimizer_post_hooks,
    )
    return methods | {"hooks": sum(map(len, hooks))}


def assert_footprint(before: dict[str, object]) -> None:
    """The very same objects, not only equal ones."""
    after = footprint()
    assert after.keys() == before.keys()
    assert [key for key in after if after[key] is not before[key]] == []


@pytest.mark.parametrize("cls", [Critic, Inherits, CallsSuper])
@pytest.mark.parametrize("how", ["with", "exception", "remove"])
@pytest.mark.parametrize("with_loader", [False, True])
def test_everything_is_put_back(cls, how, with_loader):
    gc.collect()
    attach(Critic(), TopK()).remove()  # ends the listening of ledgers that died
    setup = Setup()
    setup.D = cls()
    loader = DataLoader(TensorDataset(reals()), 4) if with_loader else None
    before, own = footprint(), dict(vars(setup.D))
    attachment = attach(setup.D, setup.topk, loader=loader)
    assert footprint() != before
    if how == "remove":
        setup.generator_step()
        attachment.remove()
        attachment.remove()
    else:
        with suppress(KeyError), attachment:
            list(loader or [])
            setup.generator_step()
            if how == "exception":
                raise KeyError
    assert_footprint(before)
    assert ("forward" in vars(cls)) == (cls is not Inherits)
    assert vars(setup.D).keys() == own.keys()
    setup.generator_step()
    assert setup.topk.report().rows == BATCH


def test_attaching_again_after_remove(gan):
    """And twice at once is refused."""
    with pytest.raises(ConfigError, match="attached already"):
        attach(gan.D, TopK())
    other = Critic()
    with attach(other, gan.topk):
        pass
    gan.generator_step()  # the other one's end did not end this one
    assert gan.topk.steps == 1


@pytest.mark.parametrize("order", [1, -1])
def test_overlapping_attachments_end_in_any_order(order):
    gc.collect()
    attach(Critic(), TopK()).remove()
    before = footprint()
    attachments = [attach(D, TopK()) for D in (Critic(), Inherits(), CallsSuper(), Critic())]
    for attachment in attachments[::order]:
        attachment.remove()
    assert_footprint(before)


def test_wrong_use():
    with pytest.raises(ConfigError, match="found a function as the critic"):
        attach(lambda x: x, TopK())
    with pytest.raises(ConfigError, match="found a list as the loader"):
        attach(Critic(), TopK(), loader=[])


def test_a_removed_attachment_is_freed():
    gc.collect()
    D = Critic()
    attachment = attach(D, TopK())
    refs = [weakref.ref(D), weakref.ref(attachment)]
    attachment.remove()
    del attachment, D
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


# --- who is gated -------------------------------------------------------------------------------


def gated_rows(G: nn.Module, critic, topk: TopK) -> int:
    """How many rows a generator step by ``critic`` sends through the gate."""

    def rows() -> int:
        return sum(topk.report(training).rows for training in topk.trainings.all)

    before = rows()
    clear(G)
    F.softplus(-critic(G(noise()))).mean().backward()
    SGD(G.parameters(), 0.0).step()
    return rows() - before


def test_calls_of_every_style(gan):
    for call in (gan.D, gan.D.forward, gan.D.__call__, lambda x: type(gan.D).forward(gan.D, x)):
        assert gated_rows(gan.G, call, gan.topk) == BATCH


def test_two_instances_of_a_class(gan):
    other = Critic()
    assert gated_rows(gan.G, other, gan.topk) == 0
    assert gated_rows(gan.G, gan.D, gan.topk) == BATCH


def test_super_forward_gates_once():
    G, D, base, topk = make_generator(), CallsSuper(), Critic(), make_topk(4)
    with attach(base, topk), attach(D, topk):
        assert gated_rows(G, D, topk) == BATCH
        assert gated_rows(G, base, topk) == BATCH


def test_a_critic_within_the_critic_gates_once():
    G, D, topk = make_generator(), Critic(), make_topk(4)
    whole = nn.Sequential(nn.Linear(WIDTH, WIDTH).double(), D)
    with attach(whole, topk), attach(D, topk):
        assert gated_rows(G, whole, topk) == BATCH
        assert gated_rows(G, D, topk) == BATCH


@pytest.mark.parametrize("patched", [False, True])
def test_a_deepcopy_is_a_plain_critic(patched):
    """As an EMA of the critic: its own weights, its own forward, no gate."""
    setup = Setup()
    if patched:  # an instance's own forward, as wrapper libraries set it
        setup.D.forward = types.MethodType(lambda self, x: type(self).forward(self, x), setup.D)
    with attach(setup.D, setup.topk):
        ema = copy.deepcopy(setup.D)
        assert gated_rows(setup.G, setup.D, setup.topk) == BATCH
        assert gated_rows(setup.G, ema, setup.topk) == 0
        with torch.no_grad():
            ema.score[0].bias += 1
            x = reals()
            assert torch.allclose(ema(x), setup.D(x) + 1)


def test_pickles_know_nothing_of_top_k(gan):
    buffer = io.BytesIO()
    torch.save(gan.D, buffer)
    assert b"topk_plugin" not in buffer.getvalue()
    assert b"topk_plugin" not in pickle.dumps(gan.D)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    x = reals()
    assert torch.equal(loaded(x), gan.D(x))
    assert gated_rows(gan.G, loaded, gan.topk) == 0


def test_checkpoints_load_strictly_without_the_plugin(gan, tmp_path):
    torch.save({"D": gan.D.state_dict(), "opt": gan.opt_G.state_dict()}, tmp_path / "ckpt.pt")
    script = f"""
import sys, torch
from torch import nn
state = torch.load({str(tmp_path / "ckpt.pt")!r}, weights_only=True)
net = nn.Module()
net.body = nn.Sequential(nn.Linear({WIDTH}, 16))
net.score = nn.Sequential(nn.Linear(16, 1))
net.load_state_dict(state["D"], strict=True)
torch.optim.SGD([torch.zeros(1) for _ in range({len(list(gan.G.parameters()))})], 1.0)\\
    .load_state_dict(state["opt"])
assert "topk_plugin" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class TwoScores(Critic):
    """Two scores, in a dict; the second is a half of the first's negative."""

    def forward(self, x):
        score = super().forward(x)
        return {"score": score, "other": -score / 2}


def test_each_critic_may_have_heads_of_its_own():
    """One TopK's ``heads`` were those of all of its critics."""
    topk, G = make_topk(2, direction="high"), make_generator()
    first, second = TwoScores(), TwoScores()
    seen = {}
    with attach(first, topk, heads=("other",)), attach(second, topk, heads=("score",)):
        for critic, head in ((first, "other"), (second, "score")):
            fake = G(noise())
            fake.retain_grad()
            out = critic(fake)
            (-out[head].sum()).backward()
            kept = (fake.grad != 0).any(1).nonzero().flatten()
            seen[head] = set(kept.tolist()) == set(out[head].flatten().topk(2).indices.tolist())
    assert seen == {"other": True, "score": True}
    for heads in ("score", [1.5], [""]):
        with pytest.raises(ConfigError, match="attach: found heads"):
            attach(first, topk, heads=heads)
