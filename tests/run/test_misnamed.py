"""A --critic that can name no class is told at the first optimizer step, with what was meant."""

import textwrap

import pytest
from launched import plain_run, run, topk_run
from short_scripts import SETTINGS, TRAIN, script

# the script prints "trained" at its end: an error at the first step comes before it
END = "\nprint('trained')\n"
NAMED = {  # text, name, what is said
    "a typo in the class": (
        TRAIN,
        "gan:Critik",
        "module gan has no such class. Did you mean gan:Critic?",
    ),
    "a typo in the class of the script": (
        "from gan import *\nclass Disc(Critic): pass\ntrain(Disc(), make_generator())",
        "__main__:Dics",
        "module __main__ has no such class. Did you mean __main__:Disc?",
    ),
    "a class of another module": (
        "import gan\ngan.train(gan.Critic(), gan.make_generator())",
        "__main__:Critic",
        "module __main__ has no such class. Did you mean gan:Critic?",
    ),
    "a class that a function imports": (
        """
        def main():
            from gan import Critic, make_generator, train
            train(Critic(), make_generator())
        main()
        """,
        "__main__:Critic",
        "module __main__ has no such class. Did you mean gan:Critic?",
    ),
    "a typo in the class, with its attribute": (
        TRAIN,
        "gan:Critik.net",
        "module gan has no such class. Did you mean gan:Critic?",
    ),
    "a typo behind a module's name": (
        "import gan as m\nm.train(m.Critic(), m.make_generator())",
        "__main__:m.Critik",
        "module gan has no Critik. Did you mean gan:Critic?",
    ),
    "a typo in a class of a function": (
        """
        from gan import *
        def make():
            class Local(Critic): pass
            return Local()
        train(make(), make_generator())
        """,
        "__main__:make.Loocal",
        "__main__:make has no Loocal. Did you mean __main__:make.Local?",
    ),
    "a typo in a class of a class": (
        """
        from gan import *
        class Outer:
            class Disc(Critic): pass
        train(Outer.Disc(), make_generator())
        """,
        "__main__:Outer.Diisc",
        "__main__:Outer has no Diisc. Did you mean __main__:Outer.Disc?",
    ),
    "an instance": (
        "from gan import *\nnetD = Critic()\ntrain(netD, make_generator())",
        "__main__:netD",
        "netD is a gan:Critic: pass --critic gan:Critic.",
    ),
    "an instance in a wrapper": (
        "from gan import *\nnetD = nn.DataParallel(Critic())\ntrain(netD, make_generator())",
        "__main__:netD",
        "netD is a gan:Critic: pass --critic gan:Critic.",
    ),
    "a submodule of an instance": (
        "from gan import *\nnetD = Critic()\ntrain(netD, make_generator())",
        "__main__:netD.net",
        "what has 'net' is a gan:Critic: pass --critic gan:Critic.net.",
    ),
    "an instance of a class of torch": (
        "from gan import *\nD = nn.Sequential(nn.Linear(2, 1))\ntrain(D, make_generator())",
        "__main__:D",
        "D is a Sequential of torch, as other networks may be: give it a class of its own",
    ),
    "a function": (
        "from gan import *\ndef make(n=1): return Critic()\ntrain(make(), make_generator())",
        "__main__:make",
        "make is a function: pass --critic gan:Critic.",
    ),
    "a function that names a module": (
        "import gan\ndef make(): return gan.Critic()\ngan.train(make(), gan.make_generator())",
        "__main__:make",
        "make is a function: pass --critic gan:Critic.",
    ),
    "a function with a class inside": (
        """
        from gan import *
        def make():
            class Local(Critic): pass
            return Local()
        train(make(), make_generator())
        """,
        "__main__:make",
        "make is a function: pass --critic __main__:make.Local.",
    ),
    "a function that calls another": (
        """
        from gan import *
        import functools
        def make(n=1): return Critic()
        build = functools.partial(lambda n: make(n), 1)
        train(build(), make_generator())
        """,
        "__main__:build",
        "build is a function: pass the class of what it returns.",
    ),
    "a module": (
        TRAIN + "\n",
        "__main__:nn",
        "nn is a module: name a class in it, --critic torch.nn:CLASS.",
    ),
    "a class that is no module": (
        """
        from gan import *
        class Disc:
            def __init__(self): self.net = Critic()
        train(Disc().net, make_generator())
        """,
        "__main__:Disc",
        "Disc is a class, but no torch.nn.Module: name the module in it that scores.",
    ),
    "a typo in a module that is there": (
        TRAIN,
        "gann:Critic",
        "there is no module gann. Did you mean gan:Critic?",
    ),
    "a typo in a module of a package": (
        TRAIN,
        "models.json.gan:Critic",
        "there is no module models.json.gan. Did you mean gan:Critic?",
    ),
    "something else": (
        "from gan import *\nDisc = 'Critic'\ntrain(Critic(), make_generator())",
        "__main__:Disc",
        "Disc is a str, expected a class that is a torch.nn.Module.",
    ),
}


@pytest.mark.parametrize("case", NAMED)
def test_a_name_that_can_match_nothing_ends_the_run_at_its_first_optimizer_step(case, folder):
    """It was told after the whole training."""
    text, critic, expected = NAMED[case]
    script(folder, textwrap.dedent(text) + END)
    assert plain_run(folder, "train.py").out == "trained\n"
    done = topk_run(folder, "train.py", critic=critic)
    assert (done.status, done.out) == (3, ""), done
    assert f"topk: SeamNotFound: --critic {critic}: {expected}" in done.err
    assert "Traceback" not in done.err


LATER = {  # text, name, the line at the first optimizer step
    "built after the generator has trained": (
        """
        from gan import *
        class Disc(Critic): pass
        G = make_generator()
        optG = torch.optim.SGD(G.parameters(), 0.1)
        (G(torch.randn(8, 3)) - 1).square().mean().backward()
        optG.step()
        print("warm")
        train(Disc(), G)
        """,
        "__main__:Disc",
        "critic __main__:Disc is not built yet.\n",
    ),
    "imported after the generator has trained": (
        """
        import torch
        G = torch.nn.Linear(3, 2).double()
        optG = torch.optim.SGD(G.parameters(), 0.1)
        (G(torch.randn(8, 3).double()) - 1).square().mean().backward()
        optG.step()
        print("warm")
        from gan import *
        train(Critic(), G)
        """,
        "gan:Critic",
        "critic gan:Critic is not built yet: no module gan is imported.\n",
    ),
    "bound after the generator has trained": (
        """
        import gan, torch
        G = gan.make_generator()
        optG = torch.optim.SGD(G.parameters(), 0.1)
        (G(torch.randn(8, 3)) - 1).square().mean().backward()
        optG.step()
        print("warm")
        def main():
            global Disc
            Disc = gan.Critic
            gan.train(Disc(), G)
        main()
        """,
        "__main__:Disc",
        "critic __main__:Disc is not built yet.\n",
    ),
    "a name that is None until then": (
        """
        from gan import *
        Disc, G = None, make_generator()
        optG = torch.optim.SGD(G.parameters(), 0.1)
        (G(torch.randn(8, 3)) - 1).square().mean().backward()
        optG.step()
        print("warm")
        Disc = type("Made", (Critic,), {})
        train(Disc(), G)
        """,
        "__main__:Disc",
        "critic __main__:Disc is not built yet",
    ),
    "made by its name": (
        """
        from gan import *
        G = make_generator()
        optG = torch.optim.SGD(G.parameters(), 0.1)
        (G(torch.randn(8, 3)) - 1).square().mean().backward()
        optG.step()
        print("warm")
        globals()["Disc"] = type("Made", (Critic,), {})
        train(Disc(), G)
        """,
        "__main__:Disc",
        "critic __main__:Disc is not built yet",
    ),
}


@pytest.mark.parametrize("case", LATER)
def test_a_critic_that_may_still_be_built_is_one_line(case, folder):
    text, critic, expected = LATER[case]
    script(folder, text)
    done = topk_run(folder, "train.py", critic=critic, flags=SETTINGS)
    assert (done.status, done.out) == (0, "warm\n"), done.err
    assert f"top-k {expected}" in done.err
    assert done.err.count("not built yet") == 1
    assert "verdict: 12 generator steps gated, 40 of 96 rows dropped" in done.err


BUILT = "Modules that were built: __main__:Gen, gan:Critic."
NEVER = {  # a name, what is said at the first optimizer step, and when the first pass ended
    "discriminator:Net": (
        f"is not built yet: no module discriminator is imported. {BUILT}\n",
        "--critic discriminator:Net was never built: no module discriminator is imported. "
        f"{BUILT} 9 optimizer steps ran.\n",
    ),
    "gan:Other": (
        f"is not built yet. {BUILT}\n",
        f"--critic gan:Other was never built. {BUILT} 9 optimizer steps ran.\n",
    ),
    "__main__:Gen": (
        "",
        "9 optimizer steps ran and no generator step went through __main__:Gen: no gradient of its "
        "score reached an nn.Parameter outside it.",
    ),
}


@pytest.mark.parametrize("name", NEVER)
def test_a_name_that_may_be_right_is_told_when_a_pass_ended_without_it(name, folder):
    """It was told after the whole training, or after 200 optimizer steps."""
    text = """
    import gan
    class Gen(gan.nn.Linear): pass
    gan.Other = type("Other", (gan.Critic,), {"__module__": "gan"})
    gan.train(gan.Critic(), Gen(3, 2), epochs=2)
    print("trained")
    """
    script(folder, text)
    done = topk_run(folder, "train.py", critic=name)
    first, later = NEVER[name]
    assert (done.status, done.out) == (3, "trained\n")
    said = done.err.split("top-k verdict")[0]
    assert said.startswith(f"top-k critic {name} {first}" if first else "top-k NOT ACTIVE yet")
    assert said.count("NOT ACTIVE yet") == 1
    assert f"top-k NOT ACTIVE yet: {later}" in said
    assert ("Other modules that were built: gan:Critic.\n" in said) == (not first)


def test_the_error_is_that_of_the_run_also_where_the_script_caught_it(folder):
    script(
        folder,
        """
        from gan import *
        D, G = Critic(), make_generator()
        try:
            train(D, G)
        except Exception:
            train(D, G)
        """,
    )
    for others in ([], ["--critic", "gan:Critic"]):
        done = topk_run(folder, "train.py", critic="gan:Critik", flags=others)
        assert done.status == 3
        assert "topk: SeamNotFound: --critic gan:Critik: module gan has no such class." in done.err
        assert ("ACTIVE: critics" in done.err) == bool(others)


def test_of_several_one_mistaken_name_is_enough(folder):
    script(folder, TRAIN + END)
    flags = ["--critic", "gan:Critik", "--critic", "__main__:train"]
    done = topk_run(folder, "train.py", critic="gan:Critic", flags=flags)
    assert (done.status, done.out) == (3, "")
    assert "--critic gan:Critik: module gan has no such class. Did you mean gan:Critic?" in done.err
    assert "--critic __main__:train: train is a function: pass the class of what" in done.err


@pytest.mark.slow
def test_every_rank_and_a_spawned_child_end_by_it(folder):
    script(folder, TRAIN + END)
    for rank in ("0", "1"):
        done = topk_run(folder, "train.py", critic="gan:Critik", env={"RANK": rank})
        assert (done.status, done.out) == (3, "")
        assert done.err.count("topk: SeamNotFound: --critic gan:Critik") == 1
    text = """
    import torch.multiprocessing as mp
    from gan import *
    class Disc(Critic): pass
    def work():
        train(Disc(), make_generator())
        print("trained")
    if __name__ == "__main__":
        process = mp.get_context("spawn").Process(target=work)
        process.start()
        process.join()
        print(process.exitcode)
    """
    script(folder, text)
    done = topk_run(folder, "train.py", critic="__main__:Dics")
    assert (done.status, done.out) == (3, "1\n"), done.err
    assert "SeamNotFound: in process" in done.err
    assert "module __main__ has no such class. Did you mean __main__:Disc?" in done.err
    assert topk_run(folder, "train.py", critic="__main__:Disc").status == 0


def test_check_tells_it_too(folder):
    script(folder, TRAIN)
    done = run(folder, ["check", "--critic", "gan:Critik", "--", "train.py"])
    assert done.status == 3
    assert "SeamNotFound: --critic gan:Critik: module gan has no such class." in done.err
