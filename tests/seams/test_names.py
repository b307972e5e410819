"""`topk run --critic` with the names that a script itself has for its critic's class."""

import textwrap

import pytest
from launched import Done, plain_run, run, topk_run
from short_scripts import SETTINGS, largest_difference, script, weights, with_gan

VERDICT = "verdict: 12 generator steps gated, 40 of 96 rows dropped, 3 epochs ended, last k 2 of 8"
FINISH = """
import sys
hand = ByHand()
if sys.argv[1:]:
    train(D, G, keep=hand.keep, decay=hand.decay)
else:
    train(D, G)
write(D, G)
"""


@pytest.fixture
def folder(tmp_path):
    return with_gan(tmp_path)


def gated_as_by_hand(folder, critic: str, *command: str) -> Done:
    """What `topk run` printed, after its weights were found to be those of top-k by hand."""
    assert plain_run(folder, "train.py").status == 0
    plain = weights(folder)
    assert plain_run(folder, "train.py", "by hand").status == 0
    hand = weights(folder)
    assert largest_difference(plain, hand) > 1e-6
    done = topk_run(folder, *(command or ["train.py"]), critic=critic, flags=SETTINGS)
    assert done.status == 0, done.err
    assert VERDICT in done.err, done.err
    assert largest_difference(weights(folder), hand) < 1e-12
    return done


NAMES = {  # how the script comes to its critic D, and what it may be called
    "imported with *": ("from gan import *\nD = Critic()", "__main__:Critic gan:Critic"),
    "imported as another name": ("from gan import Critic as Disc\nD = Disc()", "__main__:Disc"),
    "an alias": ("import gan\nDisc = gan.Critic\nD = Disc()", "__main__:Disc __main__:gan.Critic"),
    "a module by another name": (
        "import gan as m\nD = m.Critic()",
        "__main__:m.Critic __main__:m.Critic.net",
    ),
    "a partial": (
        "import functools, gan\nDisc = functools.partial(gan.Critic)\nD = Disc()",
        "__main__:Disc",
    ),
    "a name that becomes the instance": (
        "from gan import *\ncritic = Critic\ncritic = critic()\nD = critic",
        "__main__:Critic",
    ),
    "made in a function": (
        """
        from gan import *
        def make():
            class Local(Critic): pass
            return Local()
        D = make()
        """,
        "__main__:Local __main__:make.Local __main__:make.<locals>.Local __main__:Local.net",
    ),
    "made in a method": (
        """
        from gan import *
        class Trainer:
            def build(self):
                class Local(Critic): pass
                return Local
        D = Trainer().build()()
        """,
        "__main__:Local __main__:Trainer.build.Local",
    ),
    "made by type()": (
        """
        from gan import *
        Net = type("Disc", (Critic,), {"forward": lambda self, x: 2 * self.net(x)})
        D = Net()
        """,
        "__main__:Net __main__:Disc",
    ),
    "made by a factory of classes": (
        """
        from gan import *
        def classes():
            class Local(Critic): pass
            return Local
        Disc, Other = classes(), classes()
        D = Disc()
        """,
        "__main__:Disc",
    ),
    "in a module that has no entry in sys.modules": (
        """
        import importlib.util
        spec = importlib.util.spec_from_file_location("nets", "gan.py")
        gan = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(gan)
        globals().update(vars(gan), __name__="__main__")
        D = Critic()
        """,
        "nets:Critic __main__:Critic __main__:gan.Critic",
    ),
    "behind a decorator that returns a function": (
        """
        from gan import *
        import functools
        def cached(cls):
            @functools.wraps(cls)
            def make(*args): return cls(*args)
            return make
        def hidden(cls):
            return lambda: cls()
        @cached
        class Local(Critic): pass
        @hidden
        class Deep(Local.__wrapped__): pass
        D = Deep()
        """,
        "__main__:Local __main__:Deep",
    ),
    "built before the script has the name": (
        """
        import gan
        D = gan.Critic()
        if True:
            Disc = gan.Critic
        """,
        "__main__:Disc",
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_a_critic_goes_by_every_name_that_the_script_has_for_it(case, folder):
    """An imported critic was "never built" under the name that the script itself uses."""
    text, names = NAMES[case]
    text = textwrap.dedent(text) + "\nfrom gan import make_generator, train, write, ByHand"
    script(folder, text + "\nG = make_generator()" + FINISH)
    for name in names.split(" "):
        done = gated_as_by_hand(folder, name)
        assert f"ACTIVE: critic {name}, direction high" in done.err


def test_a_name_means_the_class_that_it_is_bound_to_and_no_namesake(folder):
    """Of two classes that call themselves alike the one that was not named was gated as well."""
    script(
        folder,
        """
        from gan import *
        one, Disc = (type("Disc", (Critic,), {}) for _ in range(2))
        train(one(), make_generator())
        """,
    )
    done = topk_run(folder, "train.py", critic="__main__:Disc", flags=SETTINGS)
    assert done.status == 3
    assert "SeamNotFound: --critic __main__:Disc was never built" in done.err


def package(folder) -> None:
    """pkg/ with a critic deep inside, that its pages re-export, and a script."""
    critic = """
    from torch import nn
    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        def forward(self, x):
            return self.net(x)
    """
    script(folder, critic, "pkg/nets/deep/critic.py")
    script(folder, "from .deep.critic import Critic as Discriminator", "pkg/nets/__init__.py")
    script(folder, "from . import nets\nfrom .nets import *", "pkg/__init__.py")
    text = """
    from gan import *
    from .nets import Discriminator
    from . import nets as networks
    D, G = Discriminator(), make_generator()
    """
    script(folder, textwrap.dedent(text) + FINISH, "pkg/train.py")
    script(folder, "import runpy\nrunpy.run_module('pkg.train', run_name='__main__')")


RE_EXPORTED = {
    "pkg.nets": "Discriminator",
    "pkg.nets.deep.critic": "Critic",
    "pkg": "Discriminator nets.Discriminator",
    "pkg.train": "Discriminator",  # which runs as __main__
    "__main__": "Discriminator networks.Discriminator",
}


@pytest.mark.parametrize("module", RE_EXPORTED)
def test_a_package_that_is_run_as_a_module_with_re_exported_names(module, folder):
    """`python -m pkg.train` with relative imports: only pkg.nets.deep.critic:Critic was found."""
    package(folder)
    for name in RE_EXPORTED[module].split(" "):
        gated_as_by_hand(folder, f"{module}:{name}", "-m", "pkg.train")


def test_a_package_that_imports_its_names_when_it_is_asked(folder):
    text = """
    import importlib
    def __getattr__(name):
        if name == "Critic":
            return importlib.import_module("gan").Critic
        raise AttributeError(name)
    """
    script(folder, text, "lazy/__init__.py")
    text = "import lazy\nD = lazy.Critic()\nfrom gan import *\nG = make_generator()\n"
    script(folder, text + FINISH)
    gated_as_by_hand(folder, "lazy:Critic")


EARLY = """
import gan
D = gan.Critic()
G = gan.make_generator()
Disc = gan.Critic
from gan import *
if len(sys.argv) > 1:
    D.load_state_dict(torch.load("critic.pt"))
train(D, G, epochs=2)
torch.save(D.state_dict(), "critic.pt")
"""


def test_a_late_name_does_not_hide_the_record_in_a_checkpoint(folder):
    """Nothing is built between the name's binding and the loading of a checkpoint."""
    script(folder, "import sys\n" + EARLY)
    first = topk_run(folder, "train.py", critic="__main__:Disc", flags=SETTINGS)
    assert "last k 4 of 8" in first.err
    second = topk_run(folder, "train.py", "again", critic="__main__:Disc", flags=SETTINGS)
    assert second.status == 0, second.err
    assert "last k 2 of 8" in second.err


def test_a_name_that_comes_too_late_is_an_error_with_the_other_name(folder):
    """With k < B from the start, the optimizer step before the name may have been ungated."""
    script(folder, "import sys\n" + EARLY)
    flags = [*SETTINGS, "--start-epoch", "1"]
    done = topk_run(folder, "train.py", critic="__main__:Disc", flags=flags)
    assert done.status == 3
    assert "--critic __main__:Disc: it was built, and an optimizer stepped, before" in done.err
    assert "pass --critic gan:Critic." in done.err


def test_check_takes_the_same_names(folder):
    script(folder, "from gan import *\ntrain(Critic(), make_generator())\n")
    done = run(folder, ["check", "--critic", "__main__:Critic", "--", "train.py"])
    assert done.status == 0, done.err
    assert "top-k check of critic __main__:Critic: 5 generator steps" in done.out
