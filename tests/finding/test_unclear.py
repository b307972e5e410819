"""Loops in which no critic is clear: what is said, and when."""

import pytest
from unnamed import equals_by_hand, unnamed, with_loop

UNCLEAR = {  # a loop, what the error says, and how many steps it takes at most
    "a frozen critic": (
        """
        def step(x):
            generator_step()
        """,
        ["gan:Critic: output 0 (8, 1), 32 of 32 numbers pushed up; optimizer Adam; 4 generator "]
        + ["nothing trained it but", "If it is a critic: --critic gan:Critic\n"],
        4,
    ),
    "a critic of pairs that is asked for both ends in one step": (
        """
        D, E = Net(4, 1), Net(2, 2)
        opt_d, opt_g = adam(D), adam(G, E)

        def both(x):
            z = torch.randn(8, 3)
            return D(G(z), z[:, :2]), D(x, E(x))

        def step(x):
            for optimizer, sign in ((opt_d, 1), (opt_g, -1)):
                optimizer.zero_grad()
                of_fakes, of_reals = both(x)
                (softplus(sign * of_fakes) + softplus(-sign * of_reals)).mean().backward()
                optimizer.step()
        """,
        ["__main__:Net: output 0 (8, 1), 32 of 64 numbers", "both ways (50% of them one way)"]
        + ["--critic __main__:Net"],
        8,
    ),
    "a critic with a logit for each class, of which one is generated": (
        """
        D = Net(2, 3)
        opt_d = adam(D)

        def step(x):
            opt_d.zero_grad()
            made, real = torch.zeros(8).long(), torch.ones(8).long()
            (cross_entropy(D(x), real) + cross_entropy(D(fakes().detach()), made)).backward()
            opt_d.step()
            opt_g.zero_grad()
            cross_entropy(D(fakes()), real).backward()
            opt_g.step()
        """,
        ["__main__:Net: output 0 (8, 3), 64 of 96 numbers", "as it does class logits"]
        + ["their mean ranks no samples: gate what the script makes of them, topk(score)\n"],
        8,
    ),
    "a critic whose first number is the score, and others class logits": (
        """
        D = Net(2, 4)
        opt_d = adam(D)

        def step(x):
            labels = torch.randint(3, (8,))
            opt_d.zero_grad()
            of_reals = D(x)
            cross_entropy(of_reals[:, 1:], labels).backward(retain_graph=True)
            (softplus(-of_reals[:, 0]) + softplus(D(fakes().detach())[:, 0])).mean().backward()
            opt_d.step()
            opt_g.zero_grad()
            of_fakes = D(fakes())
            cross_entropy(of_fakes[:, 1:], labels).backward(retain_graph=True)
            softplus(-of_fakes[:, 0]).mean().backward()
            opt_g.step()
        """,
        ["__main__:Net: output 0 (8, 4)", "as it does class logits", "their mean ranks no samples"],
        8,
    ),
    "a critic that returns an image": (
        """
        D = Net(2, 2)
        opt_d = adam(D)

        def error(x):
            return (D(x) - x).abs().mean(1)

        def step(x):
            opt_d.zero_grad()
            (error(x).mean() - error(fakes().detach()).mean()).backward()
            opt_d.step()
            opt_g.zero_grad()
            error(fakes()).mean().backward()
            opt_g.step()
        """,
        ["__main__:Net: output 0 (8, 2)", "it returns an image. If it autoencodes, no output"]
        + ["if it scores each pixel, the mean does: --critic __main__:Net=0\n"],
        8,
    ),
    "a critic that returns an image and a code": (
        """
        class Autoencoder(nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder, self.decoder = net(2, 3), net(3, 2)

            def forward(self, x):
                code = self.encoder(x)
                return self.decoder(code), code

        D = Autoencoder()
        opt_d = adam(D)

        def error(x):
            return (D(x)[0] - x).square().mean()

        def step(x):
            opt_d.zero_grad()
            (error(x) - 0.1 * error(fakes().detach())).backward()
            opt_d.step()
            opt_g.zero_grad()
            fake = fakes()
            image, code = D(fake)
            ((image - fake).square().mean() + code.square().sum(1).std()).backward()
            opt_g.step()
        """,
        ["__main__:Autoencoder: output 0 (8, 2)", "1 (8, 3)", "it returns an image. If it auto"]
        + ["the mean does: --critic __main__:Autoencoder=0\n"],
        8,
    ),
    "two kinds that may be critics, and neither can be told": (
        """
        class Other(Critic): pass

        R = Other()
        opt_r = adam(R)

        def step(x):
            opt_d.zero_grad(), opt_r.zero_grad()
            both = torch.cat([x, fakes().detach()]) + 0.1
            sign = torch.cat([-torch.ones(8, 1), torch.ones(8, 1)])
            (softplus(sign * D(both)) + softplus(sign * R(both))).mean().backward()
            opt_d.step(), opt_r.step()
            generator_step(lambda fake: softplus(-R(fake)).mean())
        """,
        ["gan:Critic: output", "__main__:Other: output", "and it is not the only one"],
        12,
    ),
    "a critic of which scores and a part of them are alike": (
        """
        class Several(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = net(2, 4), net(2, 4)

            def forward(self, x):
                return [self.a(x), self.b(x)], [self.a(x)[:, None]]

        D = Several()

        def step(x):
            opt_g.zero_grad()
            sum(softplus(-one).mean() for one in D(fakes())[0]).backward()
            opt_g.step()

        opt_d = adam(D)
        """,
        ["Several: output 0.0 (8, 4)", "--critic __main__:Several=0.0,0.1\n"],
        4,
    ),
}


@pytest.mark.parametrize("loop", UNCLEAR)
def test_the_error_shows_what_was_seen_when_the_first_pass_ends(loop, tmp_path):
    text, said, steps = UNCLEAR[loop]
    with_loop(tmp_path, text)
    (tmp_path / "train.py").open("a").write("\npasses(step)\nprint('went on')\n")
    done = unnamed(tmp_path)
    assert done.status == 3
    assert f"NoEffectError: nothing was named, and no critic was found in {steps} opt" in done.err
    for part in said:
        assert part in done.err
    assert "went on" not in done.out


NOTHING = {  # loops in which no module may be a critic: the GAN may begin later
    "a critic whose scores are not in rows of samples": (
        """
        class Flat(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net(2, 3)

            def forward(self, x):
                return self.net(x).view(-1)

        D = Flat()
        opt_d = adam(D)

        def step(x):
            critic_step(x)
            generator_step()
        """,
        ["__main__:Flat: output 0 (24,) for a batch of 8; optimizer Adam; it has no row for each"]
        + ["gate its scores in the script"],
    ),
    "rewards alone": (
        """
        def step(x):
            critic_step(x)
            policy = torch.distributions.Normal(fakes(), 1.0)
            made = policy.sample()
            opt_g.zero_grad()
            (-policy.log_prob(made).sum(1) * D(made).detach()[:, 0]).mean().backward()
            opt_g.step()
        """,
        ["learns from rewards alone (REINFORCE, imitation)"],
    ),
}


@pytest.mark.parametrize("loop", NOTHING)
def test_where_nothing_may_be_a_critic_it_is_said_after_a_pass_and_the_run_goes_on(loop, tmp_path):
    text, said = NOTHING[loop]
    with_loop(tmp_path, text)
    (tmp_path / "train.py").open("a").write("\npasses(step)\nprint('went on')\n")
    done = unnamed(tmp_path)
    assert (done.status, done.out) == (3, "went on\n")
    before, _, after = done.err.partition("top-k verdict")
    assert "NOT ACTIVE yet: nothing was named, and no critic was found in 9 optimizer" in before
    assert "NoEffectError: nothing was named" in after
    for part in said:
        assert part in before
        assert part in after


ONE_OPTIMIZER = """
    del opt_d, opt_g
    optimizer = adam(D, G)

    def step(x):
        optimizer.zero_grad()
        (softplus(-D(x)).mean() + softplus(D(fakes().detach())).mean()).backward()
        for p in G.parameters():
            p.grad = None
        optimizer.step()
        optimizer.zero_grad()
        softplus(-D(fakes())).mean().backward()
        for p in D.parameters():
            p.grad = None
        optimizer.step()

    passes(step)
    print("went on")
    """


def test_one_optimizer_for_both_networks_is_told_when_the_first_pass_ends(tmp_path):
    with_loop(tmp_path, ONE_OPTIMIZER)
    done = unnamed(tmp_path)
    assert done.status == 3
    assert (
        "GeneratorStepUnknown: nothing was named, and one optimizer owns both gan:Critic"
        in done.err
    )
    assert "`with topk.generator_step():`" in done.err
    assert "went on" not in done.out


def test_networks_that_learn_together_before_there_is_a_critic_are_no_gan(tmp_path):
    """An autoencoder that is trained for some epochs, also on what it made: with one optimizer."""
    with_loop(
        tmp_path,
        """
        opt_d = opt_g = None
        E, D2 = net(2, 1), net(1, 2)
        warm = adam(E, D2)

        def warm_up(x):
            warm.zero_grad()
            back = D2(E(x))
            ((back - x) ** 2).mean().backward()
            warm.step()

        passes(warm_up)
        hand = ByHand()
        del warm
        opt_d, opt_g = adam(D), adam(G)

        def step(x):
            critic_step(x)
            generator_step()

        passes(step)
        write(G, D)
        """,
    )
    done = equals_by_hand(tmp_path)
    assert "found critic gan:Critic" in done.err


def test_a_script_that_goes_on_after_the_error_ends_in_it(tmp_path):
    text = "\ntry:\n    passes(lambda x: generator_step())\nexcept Exception: pass\n"
    with_loop(tmp_path, text)
    done = unnamed(tmp_path)
    assert done.status == 3
    assert "NoEffectError: nothing was named, and no critic was found in 4 opt" in done.err


def test_the_verdict_says_what_was_not_taken(tmp_path):
    text = """
        R = Net(2, 1)
        opt_r = adam(R)

        def step(x):
            critic_step(x)
            opt_r.zero_grad()
            (R(x) - x.sum(1, keepdim=True)).square().mean().backward()
            opt_r.step()
            generator_step(lambda fake: -R(fake).mean())

        passes(step)
        """
    with_loop(tmp_path, text)
    done = unnamed(tmp_path)
    assert done.status == 0
    assert (
        "top-k verdict: not taken: __main__:Net: output 0 (8, 1), 32 of 32 numbers pushed up; "
        "optimizer Adam; 4 generator steps through it; its own steps do not show that they set "
        "generated samples against others, and it is not the only one. If it is a critic: "
        "--critic __main__:Net\n"
    ) in done.err
    assert done.err.count("__main__:Net may be a critic too, and top-k leaves it alone") == 1
    assert "If it is one, name all: --critic gan:Critic --critic __main__:Net.\n" in done.err


def test_a_critic_that_was_found_and_is_not_called_any_more(tmp_path):
    text = """
        def step(x):
            step.n = getattr(step, "n", 0) + 1
            critic_step(x)
            opt_g.zero_grad()
            first, between, last = D.net
            scores = D(fakes()) if step.n < 2 else last(between(first(fakes())))
            softplus(-scores).mean().backward()
            opt_g.step()

        passes(step)
        """
    with_loop(tmp_path, text)
    done = unnamed(tmp_path)
    assert done.status == 3
    assert "found critic gan:Critic, and none of the " in done.err
    assert "of the generator's optimizer was gated" in done.err
