"""`topk run` with several critics, each perhaps with heads of its own."""

import re
import textwrap

import pytest
from launched import Done, plain_run, run, topk_run
from short_scripts import SETTINGS, largest_difference, script, weights, with_gan

SCRIPT = """
from gan import *
import sys

class Wide(Critic):  # two scores, in a tuple in a tuple, behind something else
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(2, 1)
    def forward(self, x):
        return x.mean(1, keepdim=True), (self.net(x), self.other(x))

class Named(Critic):
    def forward(self, x):
        return {"score": x.sum(1), "real": self.net(x)}

class Plain(Critic):
    pass

hand = ByHand()

def kept(*scores):
    k = max(1, int(hand.f * 8)) if sys.argv[1:] else 8
    rows = (sum(scores) / len(scores)).flatten().topk(k).indices
    return [score[rows] for score in scores]

def scores(critic, x, generator=False):
    out = critic(x)
    heads = out[1] if isinstance(out, tuple) else [out["real"]] if isinstance(out, dict) else [out]
    return kept(*heads) if generator else heads

def train_all(critics, G, of_generator=None, wrap=lambda critic: critic):
    every = nn.ModuleList(map(wrap, critics))
    optG = torch.optim.Adam(G.parameters(), 1e-2)
    optD = torch.optim.Adam(every.parameters(), 1e-2)
    for _ in range(3):
        for x in loader:
            optD.zero_grad()
            fake = G(torch.randn(8, 3)).detach()
            sum(f.mean() - r.mean() for D in every
                for f, r in zip(scores(D, fake), scores(D, x))).backward()
            optD.step()
            optG.zero_grad()
            fake = G(torch.randn(8, 3))
            sum(-s.mean() for D in list(every)[:of_generator] for s in scores(D, fake, True)
                ).backward()
            optG.step()
        hand.decay()
    write(every, G)
"""
TRAIN = SCRIPT + "train_all([Wide(), Named(), Plain()], make_generator())\n"
THREE = ["--critic", "__main__:Named=real", "--critic", "__main__:Plain"]


@pytest.fixture
def folder(tmp_path):
    return with_gan(tmp_path)


def three(folder, *arguments: str) -> Done:
    flags = [*SETTINGS, *THREE]
    return topk_run(folder, "train.py", *arguments, critic="__main__:Wide=1.0,1.1", flags=flags)


def gated_as_by_hand(folder, text: str, launch=three) -> Done:
    script(folder, text)
    assert plain_run(folder, "train.py").status == 0
    plain = weights(folder)
    assert plain_run(folder, "train.py", "by hand").status == 0
    hand = weights(folder)
    assert largest_difference(plain, hand) > 1e-6
    done = launch(folder)
    assert done.status == 0, done.err
    assert largest_difference(weights(folder), hand) < 1e-12
    return done


def test_three_critics_two_with_heads_of_their_own(folder):
    """Of --critic A --critic B --critic C only C was gated, and nothing was said."""
    done = gated_as_by_hand(folder, TRAIN)
    names = "critics __main__:Wide=1.0,1.1, __main__:Named=real, __main__:Plain"
    assert f"ACTIVE: {names}, direction high, k 8 of 8" in done.err
    assert "verdict: 12 generator steps gated, 120 of 288 rows dropped, 3 epochs" in done.err
    assert done.err.count("generator steps gated") == 1
    # the settings hold where a critic has no heads of its own
    done = topk_run(
        folder, "train.py", critic="__main__:Named", flags=[*SETTINGS, "--heads", "real"]
    )
    others = ["--critic", "__main__:Wide=1.-1,1.0", "--critic", "__main__:Plain=0"]
    mixed = topk_run(
        folder, "train.py", critic="__main__:Named", flags=[*SETTINGS, "--heads=real", *others]
    )
    assert (done.status, mixed.status) == (0, 0), mixed.err
    assert "120 of 288 rows dropped" in mixed.err


def test_check_takes_several_critics(folder):
    script(folder, TRAIN)
    seam = ["--critic", "__main__:Wide=1.0,1.1", *THREE]
    done = run(folder, ["check", *seam, "--nu", "0.5", "--", "train.py"])
    assert done.status == 0, done.err
    assert "top-k check of critics __main__:Wide=1.0,1.1, __main__:Named=real" in done.out
    assert done.out.rstrip().endswith("agrees")


WRAPPED = {
    "DataParallel": "nn.DataParallel",
    "DistributedDataParallel": "distributed",
    "torch.compile": "lambda critic: torch.compile(critic, backend='eager')",
}
GROUP = """
def distributed(critic):
    import torch.distributed as dist, tempfile
    if not dist.is_initialized():
        store = dist.FileStore(tempfile.mktemp(), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(critic)
"""


@pytest.mark.parametrize("wrap", WRAPPED)
def test_critics_in_a_list_and_wrapped(wrap, folder):
    text = SCRIPT + GROUP + f"wrap = {WRAPPED[wrap]}\n"
    text += "train_all([Wide(), Named(), Plain()], make_generator(), wrap=wrap)\n"
    if wrap == "DistributedDataParallel":
        text += "torch.distributed.destroy_process_group()\n"
    gated_as_by_hand(folder, text)


def test_an_averaging_critic_in_a_data_parallel_is_gated_by_its_attribute(folder):
    """Its DataParallel's output, an average, was gated instead."""
    text = """
    class Average(Critic):
        def forward(self, x):
            scores = self.net(x)
            return (scores if not self.of_generator else kept(scores)[0]).mean(0)
        of_generator = False
    D = Average()
    def scores(critic, x, generator=False):
        D.of_generator = generator
        return [critic(x)]
    train_all([nn.DataParallel(D)], make_generator())
    """

    def launch(folder):
        return topk_run(folder, "train.py", critic="__main__:Average.net", flags=SETTINGS)

    gated_as_by_hand(folder, SCRIPT + textwrap.dedent(text), launch)


def test_two_submodules_of_one_class_that_averages(folder):
    text = """
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.near, self.far = Critic(), Critic()
        def forward(self, x):
            near, far = self.near(x), self.far(x)
            if self.of_generator:
                near, far = kept(near)[0], kept(far)[0]
            return near.mean(0) + far.mean(0)
        of_generator = False
    def scores(critic, x, generator=False):
        critic.of_generator = generator
        return [critic(x)]
    train_all([Both()], make_generator())
    """

    def launch(folder):
        flags = [*SETTINGS, "--critic", "__main__:Both.far"]
        return topk_run(folder, "train.py", critic="__main__:Both.near", flags=flags)

    done = gated_as_by_hand(folder, SCRIPT + textwrap.dedent(text), launch)
    assert "80 of 192 rows dropped" in done.err


def test_a_class_and_one_that_derives_from_it(folder):
    """Each is gated as the nearest of the classes that were named."""
    text = "class Derived(Wide): pass\ntrain_all([Wide(), Derived()], make_generator())\n"

    def launch(folder):
        flags = [*SETTINGS, "--critic", "__main__:Derived=1.0,1.1"]
        return topk_run(folder, "train.py", critic="__main__:Wide=1.0,1.1", flags=flags)

    done = gated_as_by_hand(folder, SCRIPT + text, launch)
    assert "80 of 192 rows dropped" in done.err
    assert done.err.count("generator steps gated") == 1


SPAWN = """
import torch.multiprocessing as mp

import gan as m
Alias = Named

def work(rank):
    torch.manual_seed(rank)
    train_all([Wide(), Named(), m.Critic()], make_generator())

if __name__ == "__main__":
    mp.spawn(work, nprocs=1)
"""


@pytest.mark.slow
def test_a_spawned_child_inherits_all_critics_and_their_heads(folder):
    text = SCRIPT.replace("sys.argv[1:]", "'by hand' in sys.argv") + SPAWN
    others = ["--critic", "__main__:Alias=real", "--critic", "__main__:Wide=1.0,1.1"]

    def launch(folder):
        flags = [*SETTINGS, *others]
        return topk_run(folder, "train.py", critic="__main__:m.Critic", flags=flags)

    done = gated_as_by_hand(folder, text, launch)
    assert ") ACTIVE: critics __main__:m.Critic, __main__:Alias=real, __main__:Wide=" in done.err
    assert "120 of 288 rows dropped" in done.err


# What is said

LEFT_OUT = {
    "never built": (
        SCRIPT + "class Spare(Critic): pass\ntrain_all([Plain()], make_generator())\n",
        "__main__:Spare",
        ["verdict: critic __main__:Spare was never built. Modules that were built: __main__:Pl"],
    ),
    "of another name": (
        SCRIPT
        + "Plane = None\ntrain_all([Plain()], make_generator())\nclass Plane(Critic): pass\n",
        "__main__:Plane",
        ["verdict: critic __main__:Plane was never built. Did you mean __main__:Plain?"],
    ),
    "of a module that is not imported": (
        SCRIPT + "train_all([Plain()], make_generator())\n",
        "wsgiref:Plain",
        [
            "critic wsgiref:Plain is not built yet: no module wsgiref is imported. Did you mean",
            "verdict: critic wsgiref:Plain was never built: no module wsgiref is imported. Did you "
            "mean __main__:Plain?",
        ],
    ),
    "in the critic's loss alone": (
        SCRIPT + "train_all([Plain(), Wide()], make_generator(), of_generator=1)\n",
        "__main__:Wide=1.0",
        ["verdict: critic __main__:Wide: no generator step went through it"],
    ),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_the_verdict_names_a_critic_of_several_that_took_no_part(case, folder):
    """Without a word of it, half of what was asked for was done."""
    text, critic, expected = LEFT_OUT[case]
    script(folder, text)
    flags = [*SETTINGS, "--critic", critic]
    done = topk_run(folder, "train.py", critic="__main__:Plain", flags=flags)
    assert done.status == 0, done.err
    assert "12 generator steps gated, 40 of 96 rows dropped" in done.err
    for text in expected:
        assert text in done.err
    seam = ["--critic", "__main__:Plain", "--critic", critic]
    checked = run(folder, ["check", *seam, "--", "train.py"])
    assert checked.status == 0, checked.err
    assert re.search(rf"^note +critic {critic.partition('=')[0]}", checked.out, re.MULTILINE)


def test_where_none_was_gated_each_is_in_the_error(folder):
    script(folder, SCRIPT + "class Spare(Critic): pass\ntrain_all([Plain()], make_generator())\n")
    flags = ["--critic", "models:Disc"]
    done = topk_run(folder, "train.py", critic="__main__:Spare", flags=flags)
    assert done.status == 3
    assert "SeamNotFound: --critic __main__:Spare was never built." in done.err
    assert "--critic models:Disc was never built: no module models is imported." in done.err


# Mistakes

MISTAKES = {
    "twice": (["gan:Critic", "gan:Critic=0"], "found gan:Critic twice, expected each critic once"),
    "no heads after =": (["gan:Critic="], "expected after = a list of names or indices"),
    "a head without a name": (["gan:Critic=0,,1"], "expected after = a list of names or indices"),
    "malformed": (["gan:Critic", "Critic=0"], "found 'Critic', expected module:Class"),
    "one class under two names": (
        ["gan:Critic", "__main__:Critic=0"],
        "gan:Critic and __main__:Critic mean the same critic, gan:Critic; name it once",
    ),
    "a critic and its attribute": (
        ["gan:Critic", "gan:Critic.net"],
        "gan:Critic and gan:Critic.net mean the same critic",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_a_critic_is_one_of_the_command(case, folder):
    critics, expected = MISTAKES[case]
    script(folder, "from gan import *\ntrain(Critic(), make_generator())\n")
    others = [word for critic in critics[1:] for word in ("--critic", critic)]
    done = topk_run(folder, "train.py", critic=critics[0], flags=others)
    assert done.status == 2
    assert "topk: ConfigError: --critic: " in done.err
    assert expected in done.err


def test_a_head_that_is_not_there_follows_the_rule_of_heads(folder):
    script(folder, TRAIN)
    done = topk_run(folder, "train.py", critic="__main__:Wide=1.2")
    assert done.status == 3
    assert "ScoreShapeError: heads names '1.2', which the critic's output does not" in done.err
