"""`topk run --critic` on averaging critics, and on other shapes that a critic's class takes."""

import re
import textwrap

import pytest
from launched import plain_run, topk_run
from short_scripts import SETTINGS, largest_difference, script, weights, with_gan


@pytest.fixture
def folder(tmp_path):
    return with_gan(tmp_path)


WGAN = """
from gan import *
import sys

class DCGAN_D(nn.Module):
    def __init__(self):
        super().__init__()
        main = nn.Sequential()
        main.add_module("initial", nn.Conv2d(1, 4, 4, 2, 1, bias=False))
        main.add_module("relu", nn.LeakyReLU(0.2, inplace=True))
        main.add_module("norm", nn.BatchNorm2d(4))
        main.add_module("final", nn.Conv2d(4, 1, 4, 1, 0, bias=False))
        self.main = main
        self.by_hand = None

    def forward(self, x):
        output = self.main(x)
        if self.by_hand is not None:
            output = self.by_hand(output)
        output = output.mean(0)
        return output.view(1)

by_hand = ByHand(largest=False)
netD, netG = DCGAN_D(), nn.Sequential(nn.ConvTranspose2d(3, 1, 8, 1, 0), nn.Tanh())
loader = DataLoader(torch.randn(32, 1, 8, 8), batch_size=8, shuffle=True)
one, mone = torch.ones(1), -torch.ones(1)
optD, optG = (torch.optim.RMSprop(n.parameters(), 5e-3) for n in (netD, netG))
for epoch in range(4):
    if sys.argv[1:] and epoch: by_hand.decay()
    data_iter, i = iter(loader), 0
    while i < len(loader):
        for p in netD.parameters(): p.requires_grad = True
        for _ in range(2):
            for p in netD.parameters(): p.data.clamp_(-0.5, 0.5)
            i += 1
            netD.zero_grad()
            netD(next(data_iter)).backward(one)
            with torch.no_grad(): fake = netG(torch.randn(8, 3, 1, 1))
            netD(fake).backward(mone)
            optD.step()
        for p in netD.parameters(): p.requires_grad = False
        netG.zero_grad()
        fake = netG(torch.randn(8, 3, 1, 1))
        if sys.argv[1:]: netD.by_hand = by_hand.keep
        netD(fake).backward(one)
        netD.by_hand = None
        optG.step()
write(netD, netG)
"""


def test_a_critic_that_averages_inside_is_gated_by_its_attribute(folder):
    script(folder, WGAN)
    assert plain_run(folder, "train.py").status == 0
    plain = weights(folder)
    assert plain_run(folder, "train.py", "by hand").status == 0
    hand = weights(folder)
    done = topk_run(folder, "train.py", critic="__main__:DCGAN_D", flags=SETTINGS)
    assert done.status == 3
    assert "--critic module:Class.attribute" in done.err

    done = topk_run(folder, "train.py", critic="__main__:DCGAN_D.main", flags=SETTINGS)
    assert done.status == 0, done.err
    assert "ACTIVE: critic __main__:DCGAN_D.main, direction low, k 8 of 8" in done.err
    assert largest_difference(plain, hand) > 1e-6
    assert largest_difference(weights(folder), hand) < 1e-12


SHAPES = {  # text, path of the critic's class; `by_hand` exists where top-k is written by hand
    "a class in a class": (
        """
        class Outer:
            class Critic(Critic): pass
        D = Outer.Critic()
        """,
        "__main__:Outer.Critic",
    ),
    "a class in a class that is a module": (
        """
        class Outer(nn.Module):
            class Inner(Critic): pass
            def __init__(self):
                super().__init__()
                self.d = Outer.Inner()
            def forward(self, x):
                return self.d(x)
        D = Outer()
        """,
        "__main__:Outer.Inner",
    ),
    "a subclass": (
        """
        class Middle(Critic): pass
        class Sub(Middle):
            def forward(self, x):
                return 2 * super().forward(x)
        D = Sub()
        """,
        "gan:Critic",
    ),
    "a class in a function": (
        """
        def make():
            class Local(Critic): pass
            return Local()
        D = make()
        """,
        "__main__:make.<locals>.Local",
    ),
    "an abstract parent": (
        """
        class Base(nn.Module):
            def score(self, x): return self(x)
        class Own(Base):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(2, 1)
            def forward(self, x): return self.net(x).squeeze(1)
        D = Own()
        """,
        "__main__:Base",
    ),
    "DataParallel": ("D = nn.DataParallel(Critic())", "gan:Critic"),
    "DataParallel of a subclass, with its attribute": (
        "D = nn.DataParallel(Critic())",
        "gan:Critic.net",
    ),
    "torch.compile, eager": ("D = torch.compile(Critic(), backend='eager')", "gan:Critic"),
    "torch.compile, aot_eager": ("D = torch.compile(Critic(), backend='aot_eager')", "gan:Critic"),
    "compiled in place": (
        "D = Critic()\nD.compile(backend='aot_eager')",
        "gan:Critic",
    ),
    "compiled forward": (
        "D = Critic()\nD.forward = torch.compile(D.forward, backend='eager')",
        "gan:Critic",
    ),
    "torch.compile of an averaging critic": (
        """
        class Averaging(Critic):
            def forward(self, x):
                scores = super().forward(x)
                return (hand_keep(scores) if hand else scores).mean()
        hand_keep = by_hand.keep
        D, hand = torch.compile(Averaging(), backend='eager'), False
        """,
        "__main__:Averaging.net",
    ),
    "a forward of its own": (
        "D = Critic()\nforward = D.forward\nD.forward = lambda x: forward(x)",
        "gan:Critic",
    ),
    "a deepcopy that is trained": ("import copy\nD = copy.deepcopy(Critic())", "gan:Critic"),
    "a clone by pickle that is trained": (
        "import pickle\nD = pickle.loads(pickle.dumps(Critic()))",
        "gan:Critic",
    ),
}
OUTSIDE = """
D_is, G = D, make_generator()
if sys.argv[1:] and "hand" not in globals():
    train(D, G, keep=by_hand.keep, decay=by_hand.decay)
elif sys.argv[1:]:
    def generator_loss(scores):
        return scores
    optD, optG = (torch.optim.Adam(n.parameters(), 1e-2) for n in (D, G))
    for _ in range(3):
        for x in loader:
            optD.zero_grad()
            (D(G(torch.randn(8, 3)).detach()).mean() - D(x).mean()).backward(); optD.step()
            optG.zero_grad()
            hand = True
            (-D(G(torch.randn(8, 3))).mean()).backward(); optG.step()
            hand = False
        by_hand.decay()
else:
    train(D, G)
write(D, G)
"""


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(name, marks=[pytest.mark.slow] * ("aot_eager" in text))
        for name, (text, _) in SHAPES.items()
    ],
)
def test_a_critic_class_of_any_shape_is_gated_or_an_error(shape, folder):
    text, critic = SHAPES[shape]
    setup = "from gan import *\nimport sys\nby_hand = ByHand()\n"
    script(folder, setup + textwrap.dedent(text) + OUTSIDE)
    assert plain_run(folder, "train.py").status == 0
    plain = weights(folder)
    assert plain_run(folder, "train.py", "by hand").status == 0
    hand = weights(folder)
    assert largest_difference(plain, hand) > 1e-6
    done = topk_run(folder, "train.py", critic=critic, flags=SETTINGS)
    assert done.status in (0, 3), done.err
    if done.status == 3:
        assert re.search(r"topk: \w+: .", done.err)
        assert "trained" in shape, f"expected to be gated:\n{done.err}"
    else:
        assert "verdict: 12 generator steps gated" in done.err
        assert largest_difference(weights(folder), hand) < 1e-12


TWO_CRITICS = """
from gan import *
import itertools, sys
a, b = ByHand(), ByHand()
D_A, D_B, G_A, G_B = Critic(), Critic(), make_generator(), make_generator()
optG = torch.optim.Adam(itertools.chain(G_A.parameters(), G_B.parameters()), 1e-2)
optD = torch.optim.Adam(itertools.chain(D_A.parameters(), D_B.parameters()), 1e-2)
keep = a.keep if sys.argv[1:] else lambda scores: scores
for epoch in range(3):
    for x in loader:
        for p in itertools.chain(D_A.parameters(), D_B.parameters()): p.requires_grad = False
        optG.zero_grad()
        fake_A, fake_B = G_A(torch.randn(8, 3)), G_B(torch.randn(8, 3))
        loss = (keep(D_A(fake_A)) - 1).square().mean() + (keep(D_B(fake_B)) - 1).square().mean()
        (loss + 0.1 * (fake_A - fake_B).abs().mean()).backward()
        optG.step()
        for p in itertools.chain(D_A.parameters(), D_B.parameters()): p.requires_grad = True
        optD.zero_grad()
        for D, fake in ((D_A, fake_A), (D_B, fake_B)):
            ((D(x) - 1).square().mean() + D(fake.detach()).square().mean()).backward()
        optD.step()
    a.decay()
write(D_A, D_B, G_A, G_B)
"""


def test_two_critics_of_one_class_in_one_generator_step(folder):
    script(folder, TWO_CRITICS)
    plain_run(folder, "train.py")
    plain = weights(folder)
    assert plain_run(folder, "train.py", "by hand").status == 0
    hand = weights(folder)
    done = topk_run(folder, "train.py", flags=SETTINGS)
    assert done.status == 0, done.err
    assert "direction high, k 8 of 8 in each of 2 calls a step, ranked apart, decays" in done.err
    assert "12 generator steps gated, 80 of 192 rows dropped, 3 epochs ended" in done.err
    assert largest_difference(plain, hand) > 1e-6
    assert largest_difference(weights(folder), hand) < 1e-12
