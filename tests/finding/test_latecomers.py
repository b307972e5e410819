"""Critics that the first pass over the data did not show."""

import pytest
from unnamed import equals_by_hand, unnamed, with_loop

TURNS = """
turn, n = random.Random(3), 0

def step(x):
    global D, n
    epoch, n = n // 4, n + 1
    for one in (critic_step, lambda x: generator_step()):
        D = Ds[TURN]
        one(x)

passes(step, 4)
write(*Ds, G)
"""
OF_ONE_CLASS = """
import random
Ds = [Critic() for _ in range(3)]
opt_d = adam(*Ds)
"""
OTHERS = {
    "of the generator's class": """
import random
G, Ds = Net(3, 2), [Net(2, 1) for _ in range(3)]
opt_d, opt_g = adam(*Ds), adam(G)
""",
    "networks of torch's": """
import random
Ds = [net(2, 1) for _ in range(3)]
opt_d = adam(*Ds)
""",
    "beside an average": """
import random
Ds = [Critic() for _ in range(3)]
opt_d = adam(*Ds)
average = copy.deepcopy(Ds[2]).requires_grad_(False)

def fakes():
    fake = G(torch.randn(8, 3))
    average(fake)
    return fake
""",
}


@pytest.mark.parametrize("turn", ["turn.randrange(3)", "epoch % 3"])
def test_critics_that_take_turns(turn, tmp_path):
    with_loop(tmp_path, OF_ONE_CLASS + TURNS.replace("TURN", turn))
    done = equals_by_hand(tmp_path)
    assert "verdict: 16 generator steps gated" in done.err
    assert "went ungated" not in done.err
    assert "not taken" not in done.err


@pytest.mark.parametrize("others", OTHERS)
def test_each_is_gated_at_its_first_call(others, tmp_path):
    with_loop(tmp_path, OTHERS[others] + TURNS.replace("TURN", "epoch % 3"))
    equals_by_hand(tmp_path)


def test_of_other_shapes_it_is_looked_at_and_what_went_ungated_is_told(tmp_path):
    text = """
import random

class Wide(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, x):
        return self.net(x)

Ds = [Wide(8), Wide(9), Wide(7)]
opt_d = adam(*Ds)
"""
    with_loop(tmp_path, text + TURNS.replace("TURN", "min(epoch, 2)"))
    done = unnamed(tmp_path)
    assert done.status == 0, done.err
    assert "verdict: 14 generator steps gated" in done.err
    assert "2 generator steps at k < B went ungated before their critic was found" in done.err


def test_a_second_one_that_the_loss_weighs_later(tmp_path):
    text = """
    C, epoch = Critic(), 0
    opt_c = adam(C)

    def step(x):
        critic_step(x)
        opt_c.zero_grad()
        (softplus(-C(x)).mean() + softplus(C(fakes().detach())).mean()).backward()
        opt_c.step()
        opt_g.zero_grad()
        fake = fakes()
        late = softplus(-keep(C(fake))).mean()
        (softplus(-keep(D(fake))).mean() + (epoch > 1) * late).backward()
        opt_g.step()

    for epoch in range(4):
        passes(step, 1)
    write(D, C, G)
    """
    with_loop(tmp_path, text)
    done = equals_by_hand(tmp_path)
    assert "verdict: 16 generator steps gated" in done.err
    assert "not taken" not in done.err


SHAPED_BY_ITS_FIRST_CALL = """
class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(1))

    def forward(self, x):
        return self.net(x)

D = Lazy()
opt_d = adam(D)

def step(x):
    critic_step(x)
    generator_step()

passes(step)
write(D, G)
"""


def test_a_critic_that_its_first_call_shapes(tmp_path):
    with_loop(tmp_path, SHAPED_BY_ITS_FIRST_CALL)
    assert "found critic __main__:Lazy" in equals_by_hand(tmp_path).err


def test_an_optimizer_of_the_critics_that_ascends(tmp_path):
    text = """
    opt_d = torch.optim.Adam(D.parameters(), 1e-2, maximize=True)

    def step(x):
        opt_d.zero_grad()
        (-softplus(-D(x)).mean() - softplus(D(fakes().detach())).mean()).backward()
        opt_d.step()
        generator_step()

    passes(step)
    write(D, G)
    """
    with_loop(tmp_path, text)
    assert "confirmed by the critic's own steps" in equals_by_hand(tmp_path).err
