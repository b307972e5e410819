"""Critics of runs that begin at k < B, and of other processes."""

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
    done = unnamed(tmp_path, flags=(*SLOW, "--start-epoch", "2", "--log", "log.jsonl"))
    assert done.status == 0, done.err
    assert "direction high, k 5 of 8, decays" in done.err
    # the first of 12 dropped nothing; then 3, 4 and 4 of them dropped 3, 4 and 5 rows each
    assert "11 generator steps gated, 45 of 96 rows dropped, 3 epochs ended" in done.err
    assert "1 generator step at k < B went ungated before" in done.err
    log = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    first, second, *_ = [(line["k"], line["dropped_score"] is None) for line in log]
    assert (first, second) == ((8, True), (5, False))


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


WRAPPED = """
import os
import torch.distributed as dist
store = f"file://{os.getcwd()}/store"
dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
D = nn.parallel.DistributedDataParallel(D)
"""


def test_the_audit_agrees(tmp_path):
    """Of a critic in a wrapper that is looked at as well."""
    with_loop(tmp_path, f"{WRAPPED}{GAN_STEP}\npasses(step)\n")
    done = run(tmp_path, ["check", "--steps", "3", "--", "train.py"])
    assert done.status == 0, done.err
    assert "loss on kept scores    relative difference at most" in done.out
    assert "top-k check of found critic gan:Critic: 3 generator steps" in done.out
    assert "result                 agrees" in done.out


def test_an_audit_of_too_few_steps_says_so(tmp_path):
    with_loop(tmp_path, f"{GAN_STEP}\nstep(next(iter(loader)))\n")
    done = run(tmp_path, ["check", *SETTINGS, "--", "train.py"])
    assert done.status == 3
    said = done.out + done.err
    assert "found critic gan:Critic, and no generator step came after the first ones" in said


@pytest.mark.slow
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
import gc, os, weakref
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
    # wrappers hold the group, and its threads abort a process now and then that ends with them
    wrappers = [weakref.ref(one) for one in (D, G)]
    D, G = D.module, G.module
    gc.collect()
    assert [one() for one in wrappers] == [None, None]  # nor does anything of top-k hold them
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, nprocs=2)
"""


@pytest.mark.slow
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
