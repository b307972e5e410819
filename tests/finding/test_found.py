"""What a run says of critics that it found, or did not find, and what it gates of them."""

import json

import pytest
from launched import plain_run, run
from short_scripts import SETTINGS, largest_difference, script, weights
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
    ],
    ids=["several numbers", "nested lists", "two scores"],
)
def test_heads_are_those_that_the_loss_pushes_one_way(returned, read, heads, tmp_path):
    text = SEVERAL.replace("RETURNED", returned).replace("READ", read).replace("LABELS", "False")
    with_loop(tmp_path, text)
    done = equals_by_hand(tmp_path)
    assert f"ACTIVE: found critic __main__:Several{heads}, direction high" in done.err
    if not heads:
        assert "ranked by the mean of the heads 0.0, 1.0" in done.err


# --- where nothing is clear -------------------------------------------------------------------

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
    "one optimizer for both networks": (
        """
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
        """,
        ["Where one optimizer owns both networks", "with topk.generator_step():"],
        24,
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
    assert ("went on" in done.out) == ("one optimizer" in loop)


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


# --- several trainings, later critics -----------------------------------------------------------


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
    assert "ACTIVE, training 2: found critics gan:Critic, D (Sequential), dir" in done.err
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
    assert "1 generator steps at k < B went ungated before their critic was found" in done.err


# --- below B from the first step ----------------------------------------------------------------

RESUMED = """
first, last = int(sys.argv[1]), int(sys.argv[2])
sys.argv[1:] = []
SETUP
if first:
    saved = torch.load("saved.pt", weights_only=True)
    LOAD
for n in range(first, last):
    torch.manual_seed(n)
    for x in loader:
        step(x)
torch.save({"D": D.state_dict(), "G": G.state_dict(), "d": opt_d.state_dict(),
            "g": opt_g.state_dict()}, "saved.pt")
write(D, G)
"""
LOAD = "D.load_state_dict(saved['D']), G.load_state_dict(saved['G']), opt_d.load_state_dict("
LOAD += "saved['d']), opt_g.load_state_dict(saved['g'])"
BARE = LOAD.replace("saved['D']", "dict(saved['D'])")
SETUPS = {
    "a class": GAN_STEP,
    "a Sequential": "D = net(2, 1)\nopt_d = adam(D)\n" + GAN_STEP,
    "twins": """
D, twin = net(2, 1), net(2, 1)
opt_d, opt_t = adam(D), adam(twin)

def step(x):
    twin(x)
    critic_step(x)
    generator_step()
""",
    "a mean": """
class Mean(Net):
    def forward(self, x):
        return super().forward(x).mean()

D = Mean(2, 1)
opt_d = adam(D)

def step(x):
    opt_d.zero_grad()
    (D(fakes().detach()) - D(x)).backward()
    opt_d.step()
    opt_g.zero_grad()
    (-D(fakes())).backward()
    opt_g.step()
""",
    "several numbers": "D = Net(2, 4)\nopt_d = adam(D)\n" + GAN_STEP,
}
SLOW = ("--gamma", "0.8", "--nu", "0.25")


@pytest.mark.parametrize("load", [LOAD, BARE], ids=["by the critic", "by the optimizer"])
@pytest.mark.parametrize("setup", SETUPS)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(setup, load, tmp_path):
    with_loop(tmp_path, RESUMED.replace("SETUP", SETUPS[setup]).replace("LOAD", load))
    flags = (*SLOW, "--log", "log.jsonl")

    def ks():
        lines = (tmp_path / "log.jsonl").read_text().splitlines()
        return [json.loads(line)["k"] for line in lines]

    assert unnamed(tmp_path, "0", "4", flags=flags).status == 0
    whole, all_ks = weights(tmp_path), ks()
    assert unnamed(tmp_path, "0", "2", flags=flags).status == 0
    done = unnamed(tmp_path, "2", "4", flags=flags)
    assert done.status == 0, done.err
    assert (all_ks[8], ks()) == (5, all_ks[8:])
    assert largest_difference(weights(tmp_path), whole) == 0
    assert "ungated" not in done.err
    assert "not taken" not in done.err


def test_a_run_that_begins_below_b_is_told_to_name_the_critic(tmp_path):
    with_loop(tmp_path, f"{GAN_STEP}\npasses(step)\n")
    done = unnamed(tmp_path, flags=(*SLOW, "--start-epoch", "2"))
    assert done.status == 2
    assert "ConfigError: gan:Critic was found after the first generator steps" in done.err
    assert "Start again and name it: --critic gan:Critic\n" in done.err


def test_a_run_that_is_below_b_after_a_warm_up_is_told_to_name_the_critic(tmp_path):
    text = f"""
        {GAN_STEP.replace(chr(10), chr(10) + "        ")}
        def warm_up(x):
            opt_g.zero_grad()
            (fakes() - x).abs().mean().backward()
            opt_g.step()

        passes(warm_up, 1)
        passes(step)
        write(D, G)
        """
    with_loop(tmp_path, text)
    done = unnamed(tmp_path, flags=(*SETTINGS, "--passes", "all"))
    assert done.status == 2
    assert "Start again and name it: --critic gan:Critic\n" in done.err
    done = unnamed(tmp_path, flags=(*SETTINGS, "--passes", "all", "--critic", "gan:Critic"))
    assert done.status == 0
    found = weights(tmp_path)
    assert plain_run(tmp_path, "train.py", "by hand").status == 0
    assert largest_difference(weights(tmp_path), found) < 1e-12


def test_where_the_critic_has_no_name_it_is_said_what_went_ungated(tmp_path):
    with_loop(tmp_path, f"D = net(2, 1)\nopt_d = adam(D)\n{GAN_STEP}\npasses(step)\n")
    done = unnamed(tmp_path, flags=(*SLOW, "--start-epoch", "2"))
    assert done.status == 0, done.err
    assert "1 generator steps at k < B went ungated before" in done.err


def test_k_that_falls_by_steps_falls_in_time(tmp_path):
    with_loop(tmp_path, f"{GAN_STEP}\npasses(step)\n")
    logs = []
    for name in ([], ["--critic", "gan:Critic"]):
        flags = [*name, *SLOW, "--every", "3", "--log", "log.jsonl"]
        assert unnamed(tmp_path, flags=flags).status == 0
        lines = (tmp_path / "log.jsonl").read_text().splitlines()
        logs.append([json.loads(line)["k"] for line in lines])
    assert logs[0] == logs[1]


# --- other processes, and topk check --------------------------------------------------------------


def test_the_audit_agrees(tmp_path):
    with_loop(tmp_path, f"{GAN_STEP}\npasses(step)\n")
    done = run(tmp_path, ["check", "--steps", "3", "--", "train.py"])
    assert done.status == 0, done.err
    assert "top-k check of found critic gan:Critic: 3 generator steps" in done.out
    assert "result                 agrees" in done.out


def test_a_child_that_is_spawned_finds_its_critic(tmp_path):
    with_loop(tmp_path, f"{GAN_STEP}\npasses(step)\nwrite(D, G)\n")
    equals_by_hand(tmp_path)
    alone = weights(tmp_path)
    script(tmp_path, (tmp_path / "train.py").read_text(), "trained.py")
    script(
        tmp_path,
        """
        import torch.multiprocessing as mp

        def work():
            import trained

        if __name__ == "__main__":
            child = mp.get_context("spawn").Process(target=work)
            child.start()
            child.join()
        """,
    )
    done = unnamed(tmp_path)
    assert done.status == 0, done.err
    assert "ACTIVE: found critic gan:Critic, direction high, k 8 of 8" in done.err
    assert "1 process gated, 12 generator steps" in done.err
    assert largest_difference(weights(tmp_path), alone) == 0


RANKS = """
import os
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel as DDP

def work(rank):
    global D, G, opt_d, opt_g
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group("gloo", init_method=f"file://{os.getcwd()}/store", rank=rank,
                            world_size=2)
    D, G = DDP(D), DDP(G)
    opt_d, opt_g = adam(D), adam(G)
    torch.manual_seed(rank)
    for _ in range(2):
        for x in loader:
            critic_step(x)
            generator_step()
    ours = torch.cat([p.detach().flatten() for p in (*D.parameters(), *G.parameters())])
    theirs = [torch.zeros_like(ours) for _ in range(2)]
    dist.all_gather(theirs, ours)
    assert torch.equal(*theirs)
    if not rank:
        write(D, G)
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, nprocs=2)
"""


def test_two_ranks_find_the_same(tmp_path):
    found = []
    with_loop(tmp_path, RANKS)
    for flags in (["--critic", "gan:Critic"], []):
        (tmp_path / "store").unlink(missing_ok=True)
        done = unnamed(tmp_path, flags=[*flags, *SETTINGS])
        assert done.status == 0, done.err
        assert "2 processes gated, 16 generator steps" in done.err
        found.append(weights(tmp_path))
    assert "ACTIVE: found critic gan:Critic, direction high" in done.err
    assert largest_difference(*found) == 0
    (tmp_path / "store").unlink(missing_ok=True)
    assert plain_run(tmp_path, "train.py").status == 0
    assert largest_difference(weights(tmp_path), found[0]) > 1e-6
