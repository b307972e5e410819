"""`topk run` with nothing named, on loops with networks that look like critics and are none."""

import textwrap

import pytest
from unnamed import equals_by_hand, with_loop

MODES = """
    class Modes(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.out = net(2, 8), nn.Linear(8, 1)

        def forward(self, x, mode="score"):
            return self.features(x) if mode == "features" else self.out(self.features(x))

    D = Modes()
    opt_d = adam(D)

    def step(x):
        critic_step(x)
        opt_g.zero_grad()
        fake = fakes()
        features = D(fake, "features"), D(x, "features").detach()
        (mse_loss(*features) + softplus(-keep(D(fake))).mean()).backward()
        opt_g.step()
    """

FOUND = {  # a loop, and what is found in it
    "a network without an optimizer, as of a perceptual loss": (
        """
        P = Critic()

        def step(x):
            critic_step(x)
            generator_step(lambda fake: softplus(-P(fake)).mean())
        """,
        "gan:Critic",
    ),
    "a copy of the critic that follows it": (
        """
        copied = copy.deepcopy(D)

        def step(x):
            critic_step(x)
            generator_step(lambda fake: softplus(-copied(fake)).mean())
            for a, b in zip(copied.parameters(), D.parameters()):
                a.data.lerp_(b.data, 0.1)
        """,
        "gan:Critic",
    ),
    "a code's network with an optimizer of its own": (
        """
        Q = Net(2, 1)
        opt_q = adam(Q)

        def step(x):
            critic_step(x)
            code = torch.rand(8, 1)
            generator_step(lambda fake: (Q(fake) - code).square().mean(), [opt_q])
        """,
        "gan:Critic",
    ),
    "a code's network in the generator's optimizer": (
        """
        Q = Net(2, 1)
        opt_g = adam(G, Q)

        def step(x):
            critic_step(x)
            generator_step(lambda fake: Q(fake).square().mean())
        """,
        "gan:Critic",
    ),
    "an encoder whose codes are all pushed one way": (
        """
        E = Net(2, 1)
        opt_e = adam(E)

        def step(x):
            critic_step(x)
            generator_step(lambda fake: (E(fake) - 5).square().mean(), [opt_e])
        """,
        "gan:Critic",
    ),
    "a mutual-information network": (
        """
        T = Net(4, 1)
        opt_t = adam(T)

        def bound(x, z):
            return T(x, z[torch.randperm(8)]).exp().mean().log() - T(x, z).mean()

        def step(x):
            critic_step(x)
            z = torch.randn(8, 2)
            opt_t.zero_grad()
            bound(fakes().detach(), z).backward()
            opt_t.step()
            generator_step(lambda fake: bound(fake, z))
        """,
        "gan:Critic",
    ),
    "a classifier of labels with an optimizer of its own": (
        """
        C = Net(2, 3)
        opt_c = adam(C)

        def step(x):
            critic_step(x)
            labels = torch.randint(3, (8,))
            opt_c.zero_grad()
            cross_entropy(C(x), labels).backward()
            opt_c.step()
            generator_step(lambda fake: cross_entropy(C(fake), labels))
        """,
        "gan:Critic",
    ),
    "a reward that is learned from real samples, before the critic": (
        """
        R = Net(2, 1)
        opt_r = adam(R)

        def step(x):
            generator_step(lambda fake: -R(fake).mean())
            opt_r.zero_grad()
            (R(x) - x.sum(1, keepdim=True)).square().mean().backward()
            opt_r.step()
            critic_step(x)
        """,
        "gan:Critic",
    ),
    "an encoder whose optimizer steps first, after one backward": (
        """
        E = Net(2, 3)
        opt_e = adam(E)

        def step(x):
            critic_step(x)
            opt_e.zero_grad(), opt_g.zero_grad()
            made = G(E(x))
            of_both = softplus(-keep(D(made))).mean() + softplus(-keep(D(fakes()))).mean()
            (of_both + (made - x).square().mean()).backward()
            opt_e.step(), opt_g.step()
        """,
        "gan:Critic",
    ),
    "one of several outputs that the script changes in place": (
        """
        class Two(Net):
            def forward(self, x):
                features = self.net[0](x)
                return self.net[2](self.net[1](features)), features

        D = Two(2, 1)
        opt_d = adam(D)

        def negated(x):
            score, features = D(x)
            return score.neg_()

        def step(x):
            opt_d.zero_grad()
            (softplus(negated(x)).mean() + softplus(-negated(fakes().detach())).mean()).backward()
            opt_d.step()
            opt_g.zero_grad()
            softplus(-keep(-negated(fakes()))).mean().backward()
            opt_g.step()
        """,
        "__main__:Two",
    ),
    "an adversarial autoencoder, whose critic is the codes'": (
        """
        E, L = Net(2, 3), Net(3, 1)
        opt_e, opt_l = adam(E, G), adam(L)

        def step(x):
            opt_e.zero_grad()
            codes = E(x)
            (softplus(-keep(L(codes))).mean() + (G(codes) - x).square().mean()).backward()
            opt_e.step()
            opt_l.zero_grad()
            (softplus(-L(torch.randn(8, 3))).mean() + softplus(L(codes.detach())).mean()).backward()
            opt_l.step()
        """,
        "__main__:Net",
    ),
    "a decoder and an encoder beside it": (
        """
        E = Net(2, 3)
        opt_e = adam(E)

        def step(x):
            critic_step(x)
            opt_e.zero_grad()
            generator_step(lambda fake: (G(E(x)) - x).square().mean(), [opt_e])
        """,
        "gan:Critic",
    ),
    "two generators and one critic": (
        """
        H = make_generator()
        opt_h = adam(H)

        def step(x):
            critic_step(x)
            generator_step(lambda fake: softplus(-keep(D(H(torch.randn(8, 3))))).mean(), [opt_h])
        """,
        "gan:Critic",
    ),
    "two optimizers after one backward through two critics": (
        """
        C, E = Critic(), Net(2, 3)
        opt_c, opt_e = adam(C), adam(E)

        def step(x):
            opt_e.zero_grad(), opt_g.zero_grad()
            coded, fake = G(E(x)), fakes()
            (softplus(-keep(C(coded))).mean() + softplus(-keep(D(fake))).mean()).backward()
            opt_e.step(), opt_g.step()
            for critic, optimizer, of in ((C, opt_c, coded), (D, opt_d, fake)):
                optimizer.zero_grad()
                (softplus(-critic(x)).mean() + softplus(critic(of.detach())).mean()).backward()
                optimizer.step()
        """,
        "gan:Critic",
    ),
    "a module that holds both networks": (
        """
        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.d, self.g = D, G

            def forward(self, x=None):
                samples = self.g(torch.randn(8, 3)) if x is None else x
                scores = self.d(samples)
                return softplus(-(keep(scores) if x is None else scores)).mean()

        both = Both()

        def step(x):
            opt_d.zero_grad()
            (both(x) + softplus(D(fakes().detach())).mean()).backward()
            opt_d.step()
            opt_g.zero_grad()
            both().backward()
            opt_g.step()
        """,
        "gan:Critic",
    ),
    "optimizers that are built late": (
        """
        del opt_d, opt_g

        def step(x):
            global opt_d, opt_g
            D(fakes()), D(x)
            if "opt_d" not in globals():
                opt_d, opt_g = adam(D), adam(G)
            critic_step(x)
            generator_step()
        """,
        "gan:Critic",
    ),
    "parameters that are added later": (
        """
        D = Net(2, 1)
        opt_d = torch.optim.Adam(D.net[0].parameters(), 1e-2)

        def step(x):
            if len(opt_d.param_groups) == 1:
                opt_d.add_param_group({"params": D.net[2].parameters()})
            critic_step(x)
            generator_step()
        """,
        "__main__:Net",
    ),
    "a critic that comes after passes without it": (
        """
        def warm_up(x):
            opt_g.zero_grad()
            (fakes() - x).abs().mean().backward()
            opt_g.step()

        passes(warm_up, 2)
        hand = ByHand()

        def step(x):
            critic_step(x)
            generator_step()
        """,
        "gan:Critic",
    ),
    "passes of an autoencoder with two optimizers before it": (
        """
        E = Net(2, 3)
        opt_e = adam(E)

        def warm_up(x):
            opt_e.zero_grad(), opt_g.zero_grad()
            (G(E(x)) - x).square().mean().backward()
            opt_e.step(), opt_g.step()

        passes(warm_up, 2)
        hand = ByHand()

        def step(x):
            critic_step(x)
            generator_step()
        """,
        "gan:Critic",
    ),
    "an adversarial loss that weighs nothing in the first pass": (
        """
        def step(x):
            step.n += 1
            weight = float(step.n > 4)  # a pass has four steps
            opt_d.zero_grad()
            (weight * (softplus(-D(x)) + softplus(D(fakes().detach()))).mean()).backward()
            opt_d.step()
            opt_g.zero_grad()
            fake = fakes()
            ((fake - x).abs().mean() + weight * softplus(-keep(D(fake))).mean()).backward()
            opt_g.step()

        step.n = 0
        passes(step, 1)
        hand = ByHand()
        """,
        "gan:Critic",
    ),
    "a Sequential": (
        """
        D = net(2, 1)
        opt_d = adam(D)

        def step(x):
            critic_step(x)
            generator_step()
        """,
        "D (Sequential)",
    ),
    "a Sequential beside a reward that is one, too": (
        """
        D, R = net(2, 1), nn.Sequential(nn.Linear(2, 1))
        opt_d, opt_r = adam(D), adam(R)

        def step(x):
            generator_step(lambda fake: -R(fake).mean())
            opt_r.zero_grad()
            (R(x) - x.sum(1, keepdim=True)).square().mean().backward()
            opt_r.step()
            critic_step(x)
        """,
        "D (Sequential)",
    ),
    "a critic that averages inside": (
        """
        class Mean(Net):
            def forward(self, x):
                scores = self.net(x)
                return (keep(scores) if self.kept else scores).mean()

        D = Mean(2, 1)
        opt_d, D.kept = adam(D), False

        def step(x):
            opt_d.zero_grad()
            (D(fakes().detach()) - D(x)).backward()
            opt_d.step()
            D.kept = True
            opt_g.zero_grad()
            (-D(fakes())).backward()
            opt_g.step()
            D.kept = False
        """,
        "__main__:Mean.net",
    ),
    "samples that are augmented after they were detached": (
        """
        class Other(Critic): pass

        D = Other()
        opt_d = adam(D)

        def augmented(x):
            return x + 0.1 * torch.randn(8, 2)

        def step(x):
            opt_d.zero_grad()
            both = D(augmented(x)), D(augmented(fakes().detach()))
            (softplus(-both[0]).mean() + softplus(both[1]).mean()).backward()
            opt_d.step()
            opt_g.zero_grad()
            softplus(-keep(D(augmented(fakes())))).mean().backward()
            opt_g.step()
        """,
        "__main__:Other",
    ),
    "a critic that returns its features in another mode": (MODES, "__main__:Modes"),
}


@pytest.mark.parametrize("trap", FOUND)
def test_the_critic_is_found_and_nothing_else(trap, tmp_path):
    loop, critic = FOUND[trap]
    with_loop(tmp_path, textwrap.dedent(loop) + "\npasses(step)\nwrite(D, G)\n")
    done = equals_by_hand(tmp_path)
    assert f"ACTIVE: found critic {critic}, direction high, k 8 of 8" in done.err
    assert "12 generator steps gated" in done.err
    assert "3 epochs ended" in done.err
    assert "training 2" not in done.err
    assert "ungated" not in done.err


def test_a_critic_with_another_mode_may_also_be_named(tmp_path):
    with_loop(tmp_path, textwrap.dedent(MODES) + "\npasses(step)\nwrite(D, G)\n")
    done = equals_by_hand(tmp_path, ["--critic", "__main__:Modes"])
    assert "12 generator steps gated, 40 of 96 rows dropped, 3 epochs" in done.err
