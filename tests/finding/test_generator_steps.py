"""Generator steps of other kinds: what their losses read, and how their gradients get there."""

import pytest
from unnamed import equals_by_hand, unnamed, with_loop

MAPS_OF_SCALES = """
class Scales(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = net(2, 4), net(2, 1)

    def forward(self, x):
        return self.a(x), [self.b(torch.cat([x, x / 2])).reshape(-1, 1, 1, 1).repeat(1, 1, 2, 2)]

D = Scales()
opt_d = adam(D)

def loss(output, sign):
    return softplus(sign * output[0]).mean() + softplus(sign * output[1][0]).mean()

def step(x):
    opt_d.zero_grad()
    (loss(D(x), -1) + loss(D(fakes().detach()), 1)).backward()
    opt_d.step()
    opt_g.zero_grad()
    loss(D(fakes()), -1).backward()
    opt_g.step()

passes(step)
"""


def test_scores_with_several_rows_for_a_sample_are_told_where_others_were_found(tmp_path):
    with_loop(tmp_path, MAPS_OF_SCALES)
    said = unnamed(tmp_path).err
    assert "ACTIVE: found critic __main__:Scales=0, direction high" in said
    assert said.count("2 rows for each sample") == 1


ONE_BATCH = """
class Scales(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.out = net(2, 4), net(4, 3)

    def forward(self, x):
        features = self.features(x)
        return [[features, self.out(features)[:, None]]]

D = Scales()
opt_d = adam(D)

def halves(fake, x):
    ((_, scores),) = D(torch.cat(ORDER))
    return (scores[:8], scores[8:]) if ORDER[0] is fake else (scores[-8:], scores[:-8])

def step(x):
    opt_d.zero_grad()
    of_fakes, of_reals = halves(DETACHED, x)
    (softplus(of_fakes).mean() + softplus(-of_reals).mean()).backward()
    opt_d.step()
    opt_g.zero_grad()
    of_fakes, of_reals = halves(fakes(), x)
    if sys.argv[1:]:
        best = of_fakes.mean((1, 2)).topk(max(1, int(hand.f * 8))).indices
        of_fakes = of_fakes[best]
    (softplus(-of_fakes).mean() + LOSS).backward()
    opt_g.step()

passes(step)
write(D, G)
"""


@pytest.mark.parametrize(
    "loss", ["0", pytest.param("of_reals.square().mean()", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("detached", ["fakes()", "fakes().detach()"])
@pytest.mark.parametrize("order", ["(fake, x)", "(x[:5], fake)"])
def test_generated_samples_in_one_batch_with_others_in_both_steps(order, detached, loss, tmp_path):
    text = ONE_BATCH.replace("ORDER", order).replace("DETACHED", detached).replace("LOSS", loss)
    with_loop(tmp_path, text)
    done = equals_by_hand(tmp_path)
    assert "ACTIVE: found critic __main__:Scales, direction high, k 8 of 8" in done.err
    assert "12 generator steps gated, 40 of 96 rows dropped" in done.err


BALANCED = """
def step(x):
    critic_step(x)
    opt_g.zero_grad()
    fake = fakes()
    losses = softplus(-keep(D(fake))).mean(), (fake - x).abs().mean()
    sent = [torch.autograd.grad(loss, fake, retain_graph=True)[0] for loss in losses]
    fake.backward(sum(one / one.norm(dim=1).mean() for one in sent))
    opt_g.step()

passes(step)
write(D, G)
"""


def test_a_critic_whose_gradient_is_balanced_with_others_is_found(tmp_path):
    with_loop(tmp_path, BALANCED)
    done = equals_by_hand(tmp_path)
    assert "ACTIVE: found critic gan:Critic, direction high, k 8 of 8" in done.err
    assert "12 generator steps gated, 40 of 96 rows dropped" in done.err


IN_TWO_BACKWARDS = """
class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.score = net(2, 4), nn.Linear(4, 1)

    def forward(self, x):
        features = self.features(x)
        return [[features, self.score(features)[:, :, None]]]

D = Pair()
opt_d = adam(D)

def step(x):
    opt_d.zero_grad()
    (softplus(-D(x)[0][1]).mean() + softplus(D(fakes().detach())[0][1]).mean()).backward()
    opt_d.step()
    opt_g.zero_grad()
    of_fakes, of_reals = D(fakes())[0], D(x)[0]
    score = keep(of_fakes[1][:, 0])
    matching = mse_loss(of_fakes[0], of_reals[0].detach())
    if APART:
        softplus(-score).mean().backward(retain_graph=True)
        matching.backward()
    else:
        (softplus(-score).mean() + matching).backward()
    opt_g.step()

passes(step)
write(D, G)
"""


@pytest.mark.parametrize("apart", [True, False], ids=["two backwards", "one"])
def test_scores_that_features_stand_before_which_are_in_the_loss_too(apart, tmp_path):
    with_loop(tmp_path, IN_TWO_BACKWARDS.replace("APART", str(apart)))
    done = equals_by_hand(tmp_path)
    assert "ACTIVE: found critic __main__:Pair, direction high" in done.err
    assert "12 generator steps gated, 40 of 96 rows dropped" in done.err


IN_TURNS = """
turn = 0

def step(x):
    global turn
    turn += 1
    if turn % 2:
        generator_step()
    else:
        opt_d.zero_grad()
        made = (fakes() + 0.01 * torch.randn(8, 2)).detach()  # not known for generated
        (softplus(-D(x)).mean() + softplus(D(made)).mean()).backward()
        opt_d.step()

passes(step)
write(D, G)
"""


def test_a_pass_after_which_the_critic_was_found_counts(tmp_path):
    with_loop(tmp_path, IN_TURNS)
    done = equals_by_hand(tmp_path)
    assert "6 generator steps gated, 20 of 48 rows dropped, 3 epochs ended" in done.err
    assert "not counted" not in done.err


@pytest.mark.parametrize("critic", ["Critic()", "Two()"])
def test_gradients_that_are_given_to_the_scores_themselves(critic, tmp_path):
    """No node follows them: backward() begins there."""
    text = """
class Two(Critic):
    def forward(self, x):
        return super().forward(x), x.mean(1)

def scored(output, sign):
    scores = output if isinstance(output, torch.Tensor) else output[0]
    scores = keep(scores) if sign == "generator" else scores
    down = sign == "fake"
    scores.backward(torch.full_like(scores, (1 if down else -1) / len(scores)))

def step(x):
    opt_d.zero_grad()
    scored(D(x), "real")
    scored(D(fakes().detach()), "fake")
    opt_d.step()
    opt_g.zero_grad()
    scored(D(fakes()), "generator")
    opt_g.step()

D = CRITIC
opt_d = adam(D)
passes(step)
write(D, G)
"""
    with_loop(tmp_path, text.replace("CRITIC", critic))
    equals_by_hand(tmp_path)
