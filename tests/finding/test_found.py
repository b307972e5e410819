"""What a run says of critics that it found, or did not find, and what it gates of them."""

import pytest
from launched import run
from short_scripts import SETTINGS, largest_difference, weights
from unnamed import equals_by_hand, unnamed, with_loop

GAN_STEP = """
def step(x):
    critic_step(x)
    generator_step()
"""

# --- heads ------------------------------------------------------------------------------------

SEVERAL = """
class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = net(2, 4), net(2, 1), net(2, 3)
        self.d = net(2, 2)

    def forward(self, x):
        return RETURNED

D = Several()
opt_d = adam(D)

def scores_of(output):
    return READ

def step(x):
    opt_d.zero_grad()
    of_fakes, of_reals = (scores_of(D(one)) for one in (fakes().detach(), x))
    labels = torch.randint(3, (8,))
    loss = (softplus(of_fakes) + softplus(-of_reals)).mean()
    (loss + cross_entropy(D(x)["label"] if LABELS else D.c(x), labels)).backward()
    opt_d.step()
    opt_g.zero_grad()
    output = D(fakes())
    scores = scores_of(output)
    loss = softplus(-scores).mean(1)
    if sys.argv[1:]:
        best = scores.mean(1).topk(max(1, int(hand.f * 8))).indices
        loss = loss[best]
    (loss.mean() + (cross_entropy(output["label"], labels) if LABELS else 0)).backward()
    opt_g.step()

passes(step)
write(D, G)
"""


@pytest.mark.parametrize(
    ("returned", "read", "heads"),
    [
        ("self.a(x)", "output", "=0"),
        ("[[self.a(x)], [self.b(x), self.c(x)]]", "output[0][0]", "=0.0"),
        ("[[self.b(x)], [self.b(x)]]", "torch.cat([output[0][0], output[1][0]], 1)", ""),
        ("self.b(x), self.d(x)", "torch.cat([output[0], output[1].mean(1, True)], 1)", "=0,1"),
    ],
    ids=["several numbers", "nested lists", "two scores", "one that is as large as a sample"],
)
def test_heads_are_those_that_the_loss_pushes_one_way(returned, read, heads, tmp_path):
    text = SEVERAL.replace("RETURNED", returned).replace("READ", read).replace("LABELS", "False")
    with_loop(tmp_path, text)
    done = equals_by_hand(tmp_path)
    assert f"ACTIVE: found critic __main__:Several{heads}, direction high" in done.err
    if not heads:
        assert "ranked by the mean of the heads 0.0, 1.0" in done.err


PARTS = """
class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = net(2, 4), net(2, 1), net(2, 1)

    def forward(self, x):
        RETURNED

D = Several()
opt_d = adam(D)

def step(x):
    opt_d.zero_grad()
    (softplus(-D(x)[0]).mean() + softplus(D(fakes().detach())[0]).mean()).backward()
    opt_d.step()
    opt_g.zero_grad()
    scores = D(fakes())[0]
    if sys.argv[1:]:
        scores = scores[scores.mean(1).topk(max(1, int(hand.f * 8))).indices]
    softplus(-scores).mean().backward()
    opt_g.step()

passes(step)
write(D, G)
"""


@pytest.mark.parametrize(
    ("returned", "heads"),
    [
        ("score = self.a(x)[:, None]; return score.flatten(1), score", "=0"),
        ("b, c = self.b(x), self.c(x); return self.b(torch.cat([b, c], 1)), b, c", ""),
    ],
    ids=["the same numbers", "what the score is made of"],
)
def test_outputs_that_the_loss_reads_through_another_alone_are_no_heads(returned, heads, tmp_path):
    with_loop(tmp_path, PARTS.replace("RETURNED", returned))
    done = equals_by_hand(tmp_path)
    assert f"ACTIVE: found critic __main__:Several{heads}, direction high" in done.err
    assert "ranked by" not in done.err
    assert "12 generator steps gated, 40 of 96 rows dropped" in done.err


def test_a_score_that_features_end_with_is_named_where_the_loss_reads_it(tmp_path):
    parts = PARTS.replace("RETURNED", "score = self.a(x); return [self.b(x), score], score")
    with_loop(tmp_path, parts.replace(")[0]", ")[1]"))
    done = equals_by_hand(tmp_path)
    assert "ACTIVE: found critic __main__:Several=1, direction high" in done.err
    assert "12 generator steps gated, 40 of 96 rows dropped" in done.err


PAIRS = """
class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList([net(2, 3), net(2, 3)])

    def forward(self, real, fake):
        return [[one(x) for one in self.nets] for x in (real, fake)]

class Other(Pair): pass

critics = Pair(), Other()
opt_d = adam(*critics)

def of_fakes(scores):
    if sys.argv[1:]:
        best = sum(one.mean(1) for one in scores).topk(max(1, int(hand.f * 8))).indices
        scores = [one[best] for one in scores]
    return scores

def opposed(critic, *x):
    both = zip(*critic(*x))
    return sum(softplus(-real).mean() + softplus(fake).mean() for real, fake in both)

def step(x):
    fake = fakes()
    opt_d.zero_grad()
    sum(opposed(critic, x, DETACHED) for critic in critics).backward()
    opt_d.step()
    opt_g.zero_grad()
    fake = fakes()
    sum(softplus(-s).mean() for c in critics for s in of_fakes(c(x, fake)[1])).backward()
    opt_g.step()

passes(step)
write(G, *critics)
"""


@pytest.mark.parametrize("detached", ["fake.detach()", "fake"])
def test_critics_of_real_and_generated_samples_in_one_call(detached, tmp_path):
    with_loop(tmp_path, PAIRS.replace("DETACHED", detached))
    done = equals_by_hand(tmp_path)
    named = "__main__:Pair=1.0,1.1, __main__:Other=1.0,1.1"
    assert f"ACTIVE: found critics {named}, direction high" in done.err
    assert "12 generator steps gated, 80 of 192 rows dropped" in done.err


DECORATED = """
def persistent(cls):
    class Decorator(cls):
        pass
    Decorator.__name__ = cls.__name__
    return Decorator

Critic = persistent(type("Critic", (Net,), {"__module__": "__main__"}))
D = Critic(2, 1)
opt_d = adam(D)

def step(x):
    critic_step(x)
    generator_step()

passes(step)
write(D, G)
"""


def test_a_class_that_a_decorator_replaced_has_its_own_name(tmp_path):
    with_loop(tmp_path, DECORATED)
    done = equals_by_hand(tmp_path)
    assert "ACTIVE: found critic __main__:Critic, direction high" in done.err
    found = weights(tmp_path)
    named = run(tmp_path, ["run", "--critic", "__main__:Critic", *SETTINGS, "--", "train.py"])
    assert named.status == 0, named.err
    assert largest_difference(weights(tmp_path), found) == 0


# --- several critics -----------------------------------------------------------------------------


def test_rows_of_a_critic_that_is_found_later_count_from_the_first(tmp_path):
    """The second one is trained from the third step on."""
    text = """
        first, second = D, net(2, 1)
        opt_2 = adam(second)

        def step(x):
            critic_step(x)
            step.n = getattr(step, "n", 0) + 1
            if step.n > 2:
                opt_2.zero_grad()
                (softplus(-second(x)) + softplus(second(fakes().detach()))).mean().backward()
                opt_2.step()
            generator_step(lambda fake: softplus(-keep(second(fake))).mean())

        passes(step)
        write(G, D, second)
        """
    with_loop(tmp_path, text)
    done = equals_by_hand(tmp_path)
    assert "ACTIVE: found critic gan:Critic, direction high" in done.err
    assert "12 generator steps gated, 80 of 192 rows dropped, 3 epochs" in done.err
    assert "not taken" not in done.err


def test_samples_are_known_again_in_a_batch_that_holds_real_ones_too(tmp_path):
    """Which of several kinds oppose can be read, so that both are found."""
    text = """
        second = net(2, 1)
        opt_2 = adam(second)

        def both_step(critic, optimizer, batch, sign):
            optimizer.zero_grad()
            softplus(sign * critic(batch)).mean().backward()
            optimizer.step()

        def step(x):
            fake, ones = fakes().detach(), torch.ones(8, 1)
            both_step(D, opt_d, torch.cat([x, fake]), torch.cat([-ones, ones]))
            both_step(second, opt_2, torch.cat([fake, x]), torch.cat([ones, -ones]))
            generator_step(lambda fake: softplus(-keep(second(fake))).mean())

        passes(step)
        write(G, D, second)
        """
    with_loop(tmp_path, text)
    done = equals_by_hand(tmp_path)
    assert "ACTIVE: found critics gan:Critic, second (Sequential), direction high" in done.err
    assert "12 generator steps gated, 80 of 192 rows dropped, 3 epochs" in done.err


def test_samples_are_known_again_beside_what_they_go_with(tmp_path):
    text = """
        second = net(3 + 2, 1)
        opt_2 = adam(second)

        def step(x):
            critic_step(x)
            z = torch.randn(8, 3)
            opt_2.zero_grad()
            of_real, of_fake = (second(torch.cat([z, one], 1)) for one in (x, G(z).detach()))
            (softplus(-of_real) + softplus(of_fake)).mean().backward()
            opt_2.step()
            opt_g.zero_grad()
            of_first, of_second = D(fakes()), second(torch.cat([z, G(z)], 1))
            (softplus(-keep(of_first)) + softplus(-keep(of_second))).mean().backward()
            opt_g.step()

        passes(step)
        write(G, D, second)
        """
    with_loop(tmp_path, text)
    done = equals_by_hand(tmp_path)
    assert "ACTIVE: found critics gan:Critic, second (Sequential), direction high" in done.err


def test_each_of_several_trainings_finds_its_own_critic(tmp_path):
    text = f"""
        {GAN_STEP.replace(chr(10), chr(10) + "        ")}
        passes(step)
        first = D, G
        D, G, hand = net(2, 1), make_generator(), ByHand()
        opt_d, opt_g = adam(D), adam(G)
        passes(step)
        write(*first, D, G)
        """
    with_loop(tmp_path, text)
    done = equals_by_hand(tmp_path)
    assert "ACTIVE: found critic gan:Critic, direction high, k 8 of 8" in done.err
    assert "ACTIVE, training 2: found critic D (Sequential), direction high" in done.err
    assert done.err.count("12 generator steps gated, 40 of 96 rows dropped, 3 epochs") == 2


def test_rows_count_of_a_critic_that_is_found_after_another_one(tmp_path):
    text = """
        C = Critic()
        opt_c = adam(C)

        def step(x):
            generator_step(lambda fake: softplus(-keep(C(fake))).mean())
            for critic, optimizer in ((C, opt_c), (D, opt_d)):
                optimizer.zero_grad()
                (softplus(-critic(x)).mean() + softplus(critic(fakes().detach())).mean()).backward()
                optimizer.step()

        passes(step)
        write(C, D, G)
        """
    with_loop(tmp_path, text)
    done = equals_by_hand(tmp_path)
    assert "12 generator steps gated, 80 of 192 rows dropped, 3 epochs ended" in done.err


def test_a_critic_that_comes_when_k_fell_is_gated_from_then_on(tmp_path):
    text = """
        class Late(Critic): pass

        L = Late()

        def step(x):
            critic_step(x)
            generator_step()

        passes(step, 2)
        opt_l = adam(L)

        def step(x):
            critic_step(x)
            opt_l.zero_grad()
            (softplus(-L(x)).mean() + softplus(L(fakes().detach())).mean()).backward()
            opt_l.step()
            generator_step(lambda fake: softplus(-L(fake)).mean())

        passes(step, 1)
        """
    with_loop(tmp_path, text)
    done = unnamed(tmp_path)
    assert done.status == 0, done.err
    assert "1 generator step at k < B went ungated before their critic was found" in done.err


def test_a_critic_of_pairs_that_is_frozen_in_generator_steps_is_found(tmp_path):
    """Then the scores of reals have no gradient; fakes were made without one before."""
    text = """
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = Critic()

        def forward(self, real, fake):
            scores = [self.one(x) for x in (real, fake)]
            return [[score] for score in scores]

    class Other(Pairs):
        pass

    critics = [Pairs(), Other()]
    opt_d = adam(*critics)

    def step(x):
        for critic in critics:
            critic.requires_grad_(True)
        with torch.no_grad():
            fake = fakes()
        pairs = [critic(x, fake) for critic in critics]
        opt_d.zero_grad()
        sum(softplus(-real).mean() + softplus(fake).mean() for (real,), (fake,) in pairs).backward()
        opt_d.step()
        for critic in critics:
            critic.requires_grad_(False)
        fake = fakes()
        loss = sum(softplus(-keep(critic(x, fake)[1][0])).mean() for critic in critics)
        opt_g.zero_grad()
        loss.backward()
        opt_g.step()

    passes(step)
    write(*critics, G)
    """
    with_loop(tmp_path, text)
    done = equals_by_hand(tmp_path)
    assert "ACTIVE: found critics __main__:Pairs" in done.err
    assert "80 of 192 rows dropped" in done.err


def test_a_critic_in_a_loss_that_gets_no_tensor_is_found(tmp_path):
    text = """
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.critic = D

        def forward(self, signal):
            return self.critic(signal.samples)

    class Signal:
        def __init__(self, samples):
            self.samples = samples

    loss = Loss()

    def step(x):
        opt_d.zero_grad()
        fake = Signal(fakes().detach())
        (softplus(-loss(Signal(x))).mean() + softplus(loss(fake)).mean()).backward()
        opt_d.step()
        opt_g.zero_grad()
        softplus(-keep(loss(Signal(fakes())))).mean().backward()
        opt_g.step()

    passes(step)
    write(D, G)
    """
    with_loop(tmp_path, text)
    done = equals_by_hand(tmp_path)
    assert "12 generator steps gated, 40 of 96 rows dropped" in done.err


PACKED = """
class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net(4, 1)

    def forward(self, x):
        return self.net(x.reshape(-1, 4))

D = Packed()
opt_d = adam(D)

def step(x):
    opt_d.zero_grad()
    of_all = D(torch.cat([fakes().detach(), x]))
    (softplus(of_all[:4]).mean() + softplus(-of_all[4:]).mean()).backward()
    opt_d.step()
    opt_g.zero_grad()
    scores = D(fakes()).flatten()
    if sys.argv[1:]:
        scores = scores.topk(max(1, int(hand.f * 4))).values
    softplus(-scores).mean().backward()
    opt_g.step()

passes(step)
write(D, G)
"""


def test_a_critic_that_scores_packs_of_samples_is_found(tmp_path):
    with_loop(tmp_path, PACKED)
    done = equals_by_hand(tmp_path)
    assert "ACTIVE: found critic __main__:Packed, direction high, k 4 of 4" in done.err
