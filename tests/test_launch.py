"""`topk run`: what a script sees is what plain Python shows it; what a user does wrong is said."""

import json
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import launched
import pytest
import torch
from launched import Done, plain_run, topk_run

from topk_plugin import cli

GAN = '''
"""Nets, data and a loop, for the short scripts of the tests."""
import torch
from torch import nn
from torch.utils.data import DataLoader

torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return self.net(x)


def make_generator():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


loader = DataLoader(torch.randn(32, 2) + 1, batch_size=8, shuffle=True)


def train(D, G, epochs=3, keep=lambda scores: scores, decay=lambda: None):
    """keep and decay are for those who write top-k by hand."""
    optD = torch.optim.Adam(D.parameters(), 1e-2)
    optG = torch.optim.Adam(G.parameters(), 1e-2)
    for _ in range(epochs):
        for x in loader:
            optD.zero_grad()
            (D(G(torch.randn(8, 3)).detach()).mean() - D(x).mean()).backward()
            optD.step()
            optG.zero_grad()
            (-keep(D(G(torch.randn(8, 3)))).mean()).backward()
            optG.step()
        decay()


def write(*modules):
    torch.save([m.state_dict() for m in modules], "weights.pt")


class ByHand:
    """The paper's snippet, for gamma 0.5 and nu 0.25."""

    def __init__(self, largest=True):
        self.f, self.largest = 1.0, largest

    def keep(self, scores):
        k = max(1, int(self.f * len(scores)))
        return scores.flatten().topk(k, largest=self.largest).values

    def decay(self):
        self.f = max(self.f * 0.5, 0.25)
'''

SETTINGS = ("--gamma", "0.5", "--nu", "0.25")
TRAIN_AND_WRITE = """
from gan import *
D, G = Critic(), make_generator()
train(D, G)
write(D, G)
"""
TRAIN = "from gan import *\ntrain(Critic(), make_generator())\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "gan.py").write_text(GAN)
    return tmp_path


def script(folder: Path, text: str, name: str = "train.py") -> str:
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(textwrap.dedent(text))
    return name


def weights(folder: Path) -> list[torch.Tensor]:
    saved = torch.load(folder / "weights.pt", weights_only=True)
    return [value for state in saved for value in state.values()]


def largest_difference(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def python(folder: Path, *arguments: str) -> Done:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env=launched.ENVIRONMENT,
    )
    return Done(done.returncode, done.stdout, done.stderr)


# Parity with plain Python


PROBE = '''\
"""What a script can see."""

import inspect, json, os, pickle, sys, threading
{imports}

class Thing:
    """A class whose source is asked for."""

def see():
    return {{
        "argv": sys.argv,
        "path": sys.path[0],
        "names": [__name__, __file__, __package__, __doc__, __spec__ and __spec__.name],
        "dunders": sorted(name for name in globals() if name.startswith("__")),
        "loader": type(__loader__).__name__,
        "main": sys.modules["__main__"].__dict__ is globals(),
        "source": inspect.getsource(Thing),
        "pickle": pickle.loads(pickle.dumps(Thing())).__class__ is Thing,
        "module": [Thing.__module__, sibling.NAME],
        "cwd": os.getcwd(),
        "thread": threading.current_thread() is threading.main_thread(),
    }}

print(json.dumps(see(), indent=1))
'''
OF_THE_SCRIPT = ["--gamma", "7", "--critic", "--", "-x", "--log=a b", ""]


def write_probes(folder: Path) -> None:
    for name in ("scripts/deep/probe.py", "probe.py"):
        script(folder, PROBE.format(imports="import sibling"), name)
        script(folder, "NAME = __name__\n", str(Path(name).parent / "sibling.py"))
    for name in ("__main__.py", "probe.py"):
        script(folder, PROBE.format(imports="from package import sibling"), f"package/{name}")
    script(folder, PROBE.format(imports="from . import sibling"), "package/relative.py")
    script(folder, "NAME = __name__\n", "package/sibling.py")
    script(folder, "", "package/__init__.py")
    script(folder, PROBE.format(imports="from .. import sibling"), "package/sub/__main__.py")
    script(folder, "", "package/sub/__init__.py")


@pytest.mark.parametrize(
    "command",
    [
        ["probe.py"],
        ["scripts/deep/probe.py"],
        ["./scripts/../probe.py"],
        ["-m", "probe"],
        ["-m", "package"],
        ["-m", "package.probe"],
        ["-m", "package.relative"],
        ["-m", "package.sub"],
    ],
    ids=lambda command: " ".join(command),
)
def test_a_script_sees_what_plain_python_shows_it(folder, command):
    write_probes(folder)
    plain = python(folder, *command, *OF_THE_SCRIPT)
    assert plain.status == 0, plain.err
    done = topk_run(folder, *command, *OF_THE_SCRIPT)
    assert (done.status, json.loads(done.out)) == (0, json.loads(plain.out))


def test_the_script_may_be_elsewhere_or_absolute(folder):
    write_probes(folder)
    away = folder / "away"
    away.mkdir()
    for path in ("../probe.py", str(folder / "scripts/deep/probe.py")):
        plain, done = python(away, path, "x"), topk_run(away, path, "x")
        assert (done.status, json.loads(done.out)) == (0, json.loads(plain.out))


@pytest.mark.parametrize(
    "entrance",
    [[sys.executable, "-m", "topk_plugin"], [str(Path(sys.executable).parent / "topk")]],
    ids=["python -m topk_plugin", "topk"],
)
def test_both_entrances_keep_streams_and_environment_apart(folder, entrance):
    write_probes(folder)
    command = [*entrance, "run", "--critic", "gan:Critic", "--", "probe.py", *OF_THE_SCRIPT]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == python(folder, "probe.py", *OF_THE_SCRIPT).out
    assert done.stderr == (
        "top-k verdict: no optimizer stepped in this process, and no process that it started "
        "reported one\n"
    )


ENDINGS = {
    "sys.exit()": 0,
    "sys.exit(0)": 0,
    "sys.exit(5)": 5,
    "sys.exit(None)": 0,
    "sys.exit(True)": 1,
    "sys.exit('what went wrong')": 1,
    "sys.exit(('a', 3))": 1,
    "raise SystemExit": 0,
    "def f(): raise ValueError('of the script')\nf()": 1,
    "try: 1 / 0\nexcept ZeroDivisionError: raise KeyError('second')": 1,
    "import argparse\nargparse.ArgumentParser(prog='p').parse_args(['--help'])": 0,
    "import argparse\nargparse.ArgumentParser(prog='p').parse_args(['--typo'])": 2,
    "x = (": 1,
    "import no_such_module_of_the_script": 1,
    "import atexit\natexit.register(print, 'bye')": 0,
    "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(.2), print('thread'))).start()": 0,
}


@pytest.mark.parametrize("text", ENDINGS, ids=lambda text: text.splitlines()[-1])
def test_ends_as_under_plain_python(folder, text):
    script(folder, "import sys\n" + text)
    plain, done = python(folder, "train.py"), topk_run(folder, "train.py")
    assert plain.status == ENDINGS[text]
    assert (done.status, done.out) == (plain.status, plain.out)
    said = [line for line in done.err.splitlines() if not line.startswith("top-k verdict")]
    # the traceback too: frames of the script, none of the launcher
    full = [line.replace('File "train.py"', f'File "{folder}/train.py"') for line in said]
    assert full == plain.err.splitlines()


@pytest.mark.parametrize("how", ["python -m topk_plugin", "topk"])
def test_ctrl_c_while_training_gives_the_verdict_and_ends_like_plain_python(folder, how):
    script(folder, "from gan import *\ntrain(Critic(), make_generator(), epochs=10**6)\n")
    entrance = [str(Path(sys.executable).parent / "topk")]
    if how != "topk":
        entrance = [sys.executable, "-m", "topk_plugin"]
    command = [*entrance, "run", "--critic", "gan:Critic", "--", "train.py"]
    with subprocess.Popen(
        command,
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env=launched.ENVIRONMENT,
        # a shell's background jobs ignore it, and so would their children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:
        assert child.stderr is not None
        assert "top-k ACTIVE" in child.stderr.readline()
        child.send_signal(signal.SIGINT)
        err = child.stderr.read()
        child.wait(30)
    assert child.returncode == -signal.SIGINT
    assert re.search(r"top-k verdict: \d+ generator steps gated", err)
    assert "KeyboardInterrupt" in err
    assert "topk_plugin/run/" not in err
    assert "topk_plugin/cli.py" not in err


def test_an_exception_in_mid_training_keeps_status_and_gives_the_verdict(folder):
    script(folder, TRAIN + "raise RuntimeError('disk full')\n")
    done = topk_run(folder, "train.py")
    assert done.status == 1
    assert "top-k verdict: 12 generator steps gated, 8 of 96 rows dropped, 3 epochs" in done.err
    assert "RuntimeError: disk full" in done.err


def test_an_exception_before_anything_was_gated_stays_the_scripts_own(folder):
    script(
        folder,
        """
        from gan import *
        G = make_generator()
        opt = torch.optim.SGD(G.parameters(), 0.1)
        G(torch.randn(8, 3)).sum().backward(); opt.step()
        raise SystemExit(7)
        """,
    )
    done = topk_run(folder, "train.py")
    assert done.status == 7
    assert "NOT ACTIVE, 1 optimizer steps, none gated" in done.err
    assert "Error" not in done.err


def test_an_import_that_fails_inside_the_package_is_named(folder):
    script(folder, "import no_such_dependency\n", "package/__init__.py")
    script(folder, "", "package/train.py")
    assert "no_such_dependency" in python(folder, "-m", "package.train").err
    done = topk_run(folder, "-m", "package.train")
    assert done.status in (1, 2)
    assert "no_such_dependency" in done.err


def test_sys_exit_after_training_is_success_with_all_checks(folder):
    script(folder, TRAIN + "import sys; sys.exit(0)\n")
    assert topk_run(folder, "train.py").status == 0
    done = topk_run(folder, "train.py", critic="gan:Other")
    assert done.status == 3
    assert "SeamNotFound" in done.err


def test_an_evaluation_run_is_no_error(folder):
    script(
        folder, "from gan import *\nprint(Critic()(make_generator()(torch.randn(2, 3))).shape)\n"
    )
    done = topk_run(folder, "train.py")
    assert (done.status, done.out) == (0, "torch.Size([2, 1])\n")
    assert "no optimizer stepped" in done.err


SPAWN = """
import torch
import torch.multiprocessing as mp

def work(rank, *rest):
    import sys
    print("child", rank, __name__, sys.argv[1:], flush=True)

if __name__ == "__main__":
    mp.spawn(work, nprocs=1)
    process = mp.get_context("spawn").Process(target=work, args=(7,))
    process.start()
    process.join()
    assert process.exitcode == 0
"""


def test_a_parent_that_only_spawns_is_no_error(folder):
    script(folder, SPAWN)
    done = topk_run(folder, "train.py", "--arg")
    assert (done.status, done.out.splitlines()) == (
        0,
        ["child 0 __mp_main__ ['--arg']", "child 7 __mp_main__ ['--arg']"],
    ), done.err
    assert done.err.count("verdict") == 1


def test_forked_children_say_nothing_and_change_nothing(folder):
    script(
        folder,
        TRAIN
        + textwrap.dedent("""
        import os, sys
        if not os.fork():
            sys.exit(3)
        print(os.waitstatus_to_exitcode(os.wait()[1]))
        """),
    )
    done = topk_run(folder, "train.py")
    assert (done.status, done.out) == (0, "3\n"), done.err
    assert done.err.count("verdict") == 1


THREAD = """
from gan import *
import threading, time
D, G = Critic(), make_generator()
threading.Thread(target=lambda: (time.sleep(0.3), train(D, G))).start()
"""


@pytest.mark.parametrize("ending", ["", "import sys; sys.exit(0)\n"], ids=["falls off", "sys.exit"])
def test_training_in_a_thread_that_outlives_the_main_one(folder, ending):
    script(folder, THREAD + ending)
    done = topk_run(folder, "train.py")
    assert done.status == 0
    assert "ACTIVE" in done.err
    assert "verdict: 12 generator steps gated" in done.err


def test_an_idle_executor_is_not_waited_for(folder):
    """Its workers are no daemons, and stop only when the interpreter tells them to."""
    (folder / "train.py").write_text(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "pool = ThreadPoolExecutor(1)\n"
        "pool.submit(print, 'worked').result()\n"
    )
    done = topk_run(folder, "train.py")
    assert (done.status, done.out) == (0, "worked\n"), done.err


def test_of_a_torchrun_only_rank_0_speaks_and_all_gate(folder):
    script(folder, TRAIN_AND_WRITE + "print('trained')\n")
    found = []
    for rank in ("0", "1"):
        flags = [*SETTINGS, "--log", f"log of {rank}"]
        done = topk_run(folder, "train.py", env={"RANK": rank}, flags=flags)
        assert (done.status, done.out) == (0, "trained\n")
        found.append((done.err.count("verdict: 12 gen"), weights(folder)))
    assert [said for said, _ in found] == [1, 0]
    assert done.err == ""
    assert len((folder / "log of 0").read_text().splitlines()) == 12
    assert not (folder / "log of 1").exists()
    assert largest_difference(found[0][1], found[1][1]) == 0
    plain_run(folder, "train.py")
    assert largest_difference(weights(folder), found[1][1]) > 1e-6


def test_errors_of_other_ranks_are_not_silent(folder):
    script(folder, TRAIN)
    done = topk_run(folder, "train.py", env={"RANK": "1"}, critic="gan:Other")
    assert done.status == 3
    assert "SeamNotFound" in done.err


# Wrong use


def in_process(capsys, *arguments: str) -> Done:
    """For mistakes that show before the script starts."""
    try:
        status = cli.main(list(arguments))
    except SystemExit as stop:  # argparse
        status = stop.code
    out, err = capsys.readouterr()
    return Done(status, out, err)


BEFORE_THE_SCRIPT = {
    "no such script": (
        ["--critic", "m:C", "--", "tarin.py"],
        ["can't find 'tarin.py' in ", "expected a script after --"],
    ),
    "a folder": (["--critic", "m:C", "--", "."], ["expected a script, not a folder"]),
    "no such module": (["--critic", "m:C", "--", "-m", "no_such"], ["no module named 'no_such'"]),
    "no such submodule": (
        ["--critic", "m:C", "--", "-m", "json.no_such"],
        ["no module named 'json.no_such'"],
    ),
    "a package without __main__": (
        ["--critic", "m:C", "--", "-m", "topk_plugin.patches"],
        ["no module named", "topk_plugin.patches"],
    ),
    "-m without a module": (["--critic", "m:C", "--", "-m"], ["-m needs a module"]),
    "no script": (["--critic", "m:C", "--"], ["found no script", "-- train.py"]),
    "no critic": (["--", "train.py"], ["--critic"]),
    "a critic without a class": (
        ["--critic", "Critic", "--", "train.py"],
        ["--critic: found 'Critic', expected module:Class", "model:Discriminator", "__main__:"],
    ),
    "a critic with an empty attribute": (
        ["--critic", "m:Critic.", "--", "train.py"],
        ["found 'm:Critic.'"],
    ),
    "a critic without a module": (["--critic", ":Critic", "--", "train.py"], ["found ':Critic'"]),
    "a critic given as a path": (
        ["--critic", "models/critic.py:Critic", "--", "train.py"],
        ["--critic: found 'models/critic.py:Critic', expected module:Class"],
    ),
    "a typo in a flag": (
        ["--critic", "m:C", "--gama", "0.9", "--", "train.py"],
        ["--gama", "--gamma"],
    ),
    "gamma out of range": (
        ["--critic", "m:C", "--gamma", "1.2", "--", "train.py"],
        ["--gamma: found 1.2, expected a number in (0, 1]", "default: 0.99"],
    ),
    "gamma is no number": (
        ["--critic", "m:C", "--gamma", "high", "--", "train.py"],
        ["--gamma", "found 'high'", "a number in (0, 1]"],
    ),
    "a direction that does not exist": (
        ["--critic", "m:C", "--direction", "up", "--", "train.py"],
        ["--direction", "'up'", "'high'", "'low'"],
    ),
    "every zero steps": (
        ["--critic", "m:C", "--every", "0", "--", "train.py"],
        ["--every: found 0", "positive number of generator steps"],
    ),
    "a log in no folder": (
        ["--critic", "m:C", "--log", "no/such/log", "--", "train.py"],
        ["--log: cannot write no/such/log: No such file or directory", "give a file"],
    ),
}


@pytest.mark.parametrize("case", BEFORE_THE_SCRIPT)
def test_a_mistake_in_the_command_shows_before_the_script_runs(case, folder, monkeypatch, capsys):
    script(folder, "print('the script ran')\n")
    monkeypatch.chdir(folder)
    arguments, expected = BEFORE_THE_SCRIPT[case]
    main, argv, path = sys.modules["__main__"], sys.argv, sys.path[:]
    done = in_process(capsys, "run", *arguments)
    sys.modules["__main__"], sys.argv, sys.path[:] = main, argv, path
    assert done.status == 2
    assert done.out == ""
    for text in expected:
        assert text in done.err
    assert "Traceback" not in done.err
    assert "verdict" not in done.err


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (("TOPK_GAMA", "0.9"), ["TOPK_GAMA: unknown environment variable", "'TOPK_GAMMA'"]),
        (("TOPK_GAMMA", "1.2"), ["TOPK_GAMMA: found 1.2", "(0, 1]"]),
        (("TOPK_NU", "half"), ["TOPK_NU: found 'half'", "(0, 1]"]),
        (("TOPK_ENABLED", "perhaps"), ["TOPK_ENABLED: found 'perhaps'", "true or false"]),
    ],
    ids=lambda value: value[0],
)
def test_a_mistake_in_the_environment(variable, expected, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv(*variable)
    script(folder, "print('the script ran')\n")
    done = in_process(capsys, "run", "--critic", "m:C", "--", "train.py")
    assert (done.status, done.out) == (2, "")
    for text in expected:
        assert text in done.err


WHILE_RUNNING = {
    "no such class": (
        TRAIN,
        "gan:Critik",
        ["SeamNotFound: --critic gan:Critik: module gan has no such class", "24 optimizer steps"]
        + ["Did you mean gan:Critic?"],
    ),
    "a class that is never built": (
        "from gan import *\nclass Spare(nn.Module): pass\ntrain(Critic(), make_generator())\n",
        "__main__:Spare",
        ["SeamNotFound: --critic __main__:Spare: it was never built", "gan:Critic"],
    ),
    "a module that is never imported": (
        TRAIN,
        "gun:Critic",
        ["SeamNotFound: --critic gun:Critic", "Did you mean gan:Critic?"],
    ),
    "a critic that returns an image": (
        """
        from gan import *
        class AutoEncoder(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(2, 2)
            def forward(self, x):
                return self.net(x)
        train(AutoEncoder(), make_generator())
        """,
        "__main__:AutoEncoder",
        ["ScoreShapeError", "(8, 2)", "an image, not a score", "expected one score per sample"],
    ),
    "a critic that returns class logits": (
        """
        from gan import *
        class Classifier(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(2, 10)
            def forward(self, x):
                return self.net(x)
        train(Classifier(), make_generator())
        """,
        "__main__:Classifier",
        ["ScoreShapeError", "(8, 10)", "10 numbers a sample", "--heads"],
    ),
    "a critic that averages inside": (
        """
        from gan import *
        class Averaging(Critic):
            def forward(self, x):
                return super().forward(x).mean(0).view(1)
        train(Averaging(), make_generator())
        """,
        "__main__:Averaging",
        ["ScoreShapeError", "(1,) for a batch of 8", "averaged inside", "module:Class.attribute"],
    ),
    "no generator step": (
        """
        from gan import *
        D, G = Critic(), make_generator()
        optD, optG = (torch.optim.SGD(n.parameters(), 0.1) for n in (D, G))
        for x in loader:
            (-D(x).mean()).backward(); optD.step()
            (G(torch.randn(8, 3)) - x).square().mean().backward(); optG.step()
        """,
        "gan:Critic",
        ["NoEffectError: 8 optimizer steps ran and no generator step went through gan:Critic"]
        + ["Expected loss = f(critic(generator(z)))"],
    ),
    "the critic's steps alone": (
        """
        from gan import *
        D, G = Critic(), make_generator()
        optD = torch.optim.SGD(D.parameters(), 0.1)
        for x in loader:
            (D(G(torch.randn(8, 3))).mean() - D(x).mean()).backward(); optD.step()
        """,
        "gan:Critic",
        ["NoEffectError", "4 optimizer steps"],
    ),
    "one optimizer for both nets": (
        """
        from gan import *
        D, G = Critic(), make_generator()
        opt = torch.optim.SGD([*D.parameters(), *G.parameters()], 0.1)
        for x in loader:
            (-D(G(torch.randn(8, 3))).mean()).backward(); opt.step()
        """,
        "gan:Critic",
        ["GeneratorStepUnknown: one SGD owns parameters of both", "topk.generator_step()"],
    ),
    "an attribute that does not exist": (
        TRAIN,
        "gan:Critic.main",
        ["SeamNotFound: --critic gan:Critic.main: Critic has no submodule 'main'"]
        + ["expected one of: net"],
    ),
    "an attribute that is no scorer": (
        """
        from gan import *
        class Wide(nn.Module):
            def __init__(self):
                super().__init__()
                self.features, self.last = nn.Linear(2, 5), nn.Linear(5, 1)
            def forward(self, x):
                return self.last(self.features(x)).mean()
        train(Wide(), make_generator())
        """,
        "__main__:Wide.features",
        ["ScoreShapeError", "(8, 5)", "expected one score per sample"],
    ),
    "losses that contradict each other": (
        """
        from gan import *
        D, G = Critic(), make_generator()
        opt = torch.optim.SGD(G.parameters(), 0.1)
        for x in loader:
            fakes = G(torch.randn(8, 3))
            (D(fakes).mean() - D(fakes + 1).mean()).backward(); opt.step()
        """,
        "gan:Critic",
        ["DirectionUnknown", "in 4 of 4 generator steps", "--direction high"],
    ),
}


@pytest.mark.parametrize("case", WHILE_RUNNING)
def test_where_top_k_cannot_work_the_run_ends_in_status_3(case, folder):
    text, critic, expected = WHILE_RUNNING[case]
    script(folder, text)
    assert plain_run(folder, "train.py").status == 0
    done = topk_run(folder, "train.py", critic=critic)
    assert done.status == 3, done
    for words in expected:
        assert words in done.err
    assert "Traceback" not in done.err


def test_the_verdict_says_when_k_never_decayed(folder):
    script(
        folder,
        """
        from gan import *
        loader = None
        import gan
        gan.loader = [torch.randn(8, 2) for _ in range(4)]
        train(Critic(), make_generator())
        """,
    )
    done = topk_run(folder, "train.py")
    assert done.status == 0
    assert "k never decayed (no DataLoader fed a generator step): pass --every N" in done.err
    for flags in (["--every", "5"], ["--gamma", "1"]):
        assert "never decayed" not in topk_run(folder, "train.py", flags=flags).err


def test_a_user_hears_early_that_nothing_is_gated(folder):
    script(
        folder,
        """
        from gan import *
        G = make_generator()
        opt = torch.optim.SGD(G.parameters(), 0.1)
        for n in range(300):
            G(torch.randn(8, 3)).sum().backward(); opt.step()
            if n == 250: import sys; sys.stderr.write("still training\\n")
        """,
    )
    done = topk_run(folder, "train.py")
    assert done.status == 3
    early = done.err.split("still training")[0]
    assert early.count("NOT ACTIVE yet: 200 optimizer steps, none through critic") == 1


# Averaging critics, and other shapes that a critic's class takes


WGAN = """
from gan import *
import sys

class DCGAN_D(nn.Module):
    def __init__(self):
        super().__init__()
        main = nn.Sequential()
        main.add_module("initial", nn.Conv2d(1, 4, 4, 2, 1, bias=False))
        main.add_module("relu", nn.LeakyReLU(0.2, inplace=True))
        main.add_module("norm", nn.BatchNorm2d(4))
        main.add_module("final", nn.Conv2d(4, 1, 4, 1, 0, bias=False))
        self.main = main
        self.by_hand = None

    def forward(self, x):
        output = self.main(x)
        if self.by_hand is not None:
            output = self.by_hand(output)
        output = output.mean(0)
        return output.view(1)

by_hand = ByHand(largest=False)
netD, netG = DCGAN_D(), nn.Sequential(nn.ConvTranspose2d(3, 1, 8, 1, 0), nn.Tanh())
loader = DataLoader(torch.randn(32, 1, 8, 8), batch_size=8, shuffle=True)
one, mone = torch.ones(1), -torch.ones(1)
optD, optG = (torch.optim.RMSprop(n.parameters(), 5e-3) for n in (netD, netG))
for epoch in range(4):
    if sys.argv[1:] and epoch: by_hand.decay()
    data_iter, i = iter(loader), 0
    while i < len(loader):
        for p in netD.parameters(): p.requires_grad = True
        for _ in range(2):
            for p in netD.parameters(): p.data.clamp_(-0.5, 0.5)
            i += 1
            netD.zero_grad()
            netD(next(data_iter)).backward(one)
            with torch.no_grad(): fake = netG(torch.randn(8, 3, 1, 1))
            netD(fake).backward(mone)
            optD.step()
        for p in netD.parameters(): p.requires_grad = False
        netG.zero_grad()
        fake = netG(torch.randn(8, 3, 1, 1))
        if sys.argv[1:]: netD.by_hand = by_hand.keep
        netD(fake).backward(one)
        netD.by_hand = None
        optG.step()
write(netD, netG)
"""


def test_a_critic_that_averages_inside_is_gated_by_its_attribute(folder):
    script(folder, WGAN)
    assert plain_run(folder, "train.py").status == 0
    plain = weights(folder)
    assert plain_run(folder, "train.py", "by hand").status == 0
    hand = weights(folder)
    done = topk_run(folder, "train.py", critic="__main__:DCGAN_D", flags=SETTINGS)
    assert done.status == 3
    assert "--critic module:Class.attribute" in done.err

    done = topk_run(folder, "train.py", critic="__main__:DCGAN_D.main", flags=SETTINGS)
    assert done.status == 0, done.err
    assert "ACTIVE: critic __main__:DCGAN_D.main, direction low, k 8 of 8" in done.err
    assert largest_difference(plain, hand) > 1e-6
    assert largest_difference(weights(folder), hand) < 1e-12


SHAPES = {  # text, path of the critic's class; `by_hand` exists where top-k is written by hand
    "a class in a class": (
        """
        class Outer:
            class Critic(Critic): pass
        D = Outer.Critic()
        """,
        "__main__:Outer.Critic",
    ),
    "a class in a class that is a module": (
        """
        class Outer(nn.Module):
            class Inner(Critic): pass
            def __init__(self):
                super().__init__()
                self.d = Outer.Inner()
            def forward(self, x):
                return self.d(x)
        D = Outer()
        """,
        "__main__:Outer.Inner",
    ),
    "a subclass": (
        """
        class Middle(Critic): pass
        class Sub(Middle):
            def forward(self, x):
                return 2 * super().forward(x)
        D = Sub()
        """,
        "gan:Critic",
    ),
    "a class in a function": (
        """
        def make():
            class Local(Critic): pass
            return Local()
        D = make()
        """,
        "__main__:make.<locals>.Local",
    ),
    "an abstract parent": (
        """
        class Base(nn.Module):
            def score(self, x): return self(x)
        class Own(Base):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(2, 1)
            def forward(self, x): return self.net(x).squeeze(1)
        D = Own()
        """,
        "__main__:Base",
    ),
    "DataParallel": ("D = nn.DataParallel(Critic())", "gan:Critic"),
    "DataParallel of a subclass, with its attribute": (
        "D = nn.DataParallel(Critic())",
        "gan:Critic.net",
    ),
    "torch.compile, eager": ("D = torch.compile(Critic(), backend='eager')", "gan:Critic"),
    "torch.compile, aot_eager": ("D = torch.compile(Critic(), backend='aot_eager')", "gan:Critic"),
    "compiled in place": (
        "D = Critic()\nD.compile(backend='aot_eager')",
        "gan:Critic",
    ),
    "compiled forward": (
        "D = Critic()\nD.forward = torch.compile(D.forward, backend='eager')",
        "gan:Critic",
    ),
    "torch.compile of an averaging critic": (
        """
        class Averaging(Critic):
            def forward(self, x):
                scores = super().forward(x)
                return (hand_keep(scores) if hand else scores).mean()
        hand_keep = by_hand.keep
        D, hand = torch.compile(Averaging(), backend='eager'), False
        """,
        "__main__:Averaging.net",
    ),
    "a forward of its own": (
        "D = Critic()\nforward = D.forward\nD.forward = lambda x: forward(x)",
        "gan:Critic",
    ),
    "a deepcopy that is trained": ("import copy\nD = copy.deepcopy(Critic())", "gan:Critic"),
    "a clone by pickle that is trained": (
        "import pickle\nD = pickle.loads(pickle.dumps(Critic()))",
        "gan:Critic",
    ),
}
OUTSIDE = """
D_is, G = D, make_generator()
if sys.argv[1:] and "hand" not in globals():
    train(D, G, keep=by_hand.keep, decay=by_hand.decay)
elif sys.argv[1:]:
    def generator_loss(scores):
        return scores
    optD, optG = (torch.optim.Adam(n.parameters(), 1e-2) for n in (D, G))
    for _ in range(3):
        for x in loader:
            optD.zero_grad()
            (D(G(torch.randn(8, 3)).detach()).mean() - D(x).mean()).backward(); optD.step()
            optG.zero_grad()
            hand = True
            (-D(G(torch.randn(8, 3))).mean()).backward(); optG.step()
            hand = False
        by_hand.decay()
else:
    train(D, G)
write(D, G)
"""


@pytest.mark.parametrize("shape", SHAPES)
def test_a_critic_class_of_any_shape_is_gated_or_an_error(shape, folder):
    text, critic = SHAPES[shape]
    setup = "from gan import *\nimport sys\nby_hand = ByHand()\n"
    script(folder, setup + textwrap.dedent(text) + OUTSIDE)
    assert plain_run(folder, "train.py").status == 0
    plain = weights(folder)
    assert plain_run(folder, "train.py", "by hand").status == 0
    hand = weights(folder)
    assert largest_difference(plain, hand) > 1e-6
    done = topk_run(folder, "train.py", critic=critic, flags=SETTINGS)
    assert done.status in (0, 3), done.err
    if done.status == 3:
        assert re.search(r"topk: \w+: .", done.err)
        assert "trained" in shape, f"expected to be gated:\n{done.err}"
    else:
        assert "verdict: 12 generator steps gated" in done.err
        assert largest_difference(weights(folder), hand) < 1e-12


TWO_CRITICS = """
from gan import *
import itertools, sys
a, b = ByHand(), ByHand()
D_A, D_B, G_A, G_B = Critic(), Critic(), make_generator(), make_generator()
optG = torch.optim.Adam(itertools.chain(G_A.parameters(), G_B.parameters()), 1e-2)
optD = torch.optim.Adam(itertools.chain(D_A.parameters(), D_B.parameters()), 1e-2)
keep = a.keep if sys.argv[1:] else lambda scores: scores
for epoch in range(3):
    for x in loader:
        for p in itertools.chain(D_A.parameters(), D_B.parameters()): p.requires_grad = False
        optG.zero_grad()
        fake_A, fake_B = G_A(torch.randn(8, 3)), G_B(torch.randn(8, 3))
        loss = (keep(D_A(fake_A)) - 1).square().mean() + (keep(D_B(fake_B)) - 1).square().mean()
        (loss + 0.1 * (fake_A - fake_B).abs().mean()).backward()
        optG.step()
        for p in itertools.chain(D_A.parameters(), D_B.parameters()): p.requires_grad = True
        optD.zero_grad()
        for D, fake in ((D_A, fake_A), (D_B, fake_B)):
            ((D(x) - 1).square().mean() + D(fake.detach()).square().mean()).backward()
        optD.step()
    a.decay()
write(D_A, D_B, G_A, G_B)
"""


def test_two_critics_of_one_class_in_one_generator_step(folder):
    script(folder, TWO_CRITICS)
    plain_run(folder, "train.py")
    plain = weights(folder)
    assert plain_run(folder, "train.py", "by hand").status == 0
    hand = weights(folder)
    done = topk_run(folder, "train.py", flags=SETTINGS)
    assert done.status == 0, done.err
    assert "direction high, k 8 of 8, decays x0.5 each epoch to 2" in done.err
    assert "12 generator steps gated, 80 of 192 rows dropped, 3 epochs ended" in done.err
    assert largest_difference(plain, hand) > 1e-6
    assert largest_difference(weights(folder), hand) < 1e-12


# Settings


@pytest.mark.parametrize(
    ("flags", "env", "last"),
    [
        ([], {}, "decays x0.99 each epoch to 4"),
        ([], {"TOPK_GAMMA": "0.9", "TOPK_NU": "0.25"}, "decays x0.9 each epoch to 2"),
        (["--gamma", "0.8"], {"TOPK_GAMMA": "0.9"}, "decays x0.8 each epoch to 4"),
        (["--every", "3"], {"TOPK_DIRECTION": "low"}, "decays x0.99 each 3 generator steps to 4"),
        (["--enabled"], {"TOPK_ENABLED": "0", "TOPK_GAMMA": "1"}, "never decays"),
    ],
)
def test_a_flag_beats_the_environment_beats_the_default(folder, flags, env, last):
    script(folder, TRAIN)
    done = topk_run(folder, "train.py", flags=flags, env=env)
    assert done.status == 0
    direction = env.get("TOPK_DIRECTION", "high")
    header = f"top-k ACTIVE: critic gan:Critic, direction {direction}, k 8 of 8, {last}\n"
    assert done.err.count(header) == 1


@pytest.mark.parametrize("critic", ["gan:Critic", "gan:NoSuchClass"])
def test_disabled_is_the_identity(folder, critic):
    script(folder, TRAIN_AND_WRITE)
    plain_run(folder, "train.py")
    plain = weights(folder)
    for flags, env in ((["--no-enabled"], {}), ([], {"TOPK_ENABLED": "0"})):
        (folder / "weights.pt").unlink()
        done = topk_run(folder, "train.py", flags=flags, env=env, critic=critic)
        assert done == (0, "", "")
        assert all(torch.equal(a, b) for a, b in zip(weights(folder), plain, strict=True))
    done = topk_run(folder, "train.py", flags=SETTINGS)
    assert largest_difference(weights(folder), plain) > 1e-6


def test_k_equal_to_the_batch_is_bit_identical(folder):
    script(folder, TRAIN_AND_WRITE)
    plain_run(folder, "train.py")
    plain = weights(folder)
    done = topk_run(folder, "train.py", flags=["--gamma", "1"])
    assert done.status == 0
    assert "12 generator steps gated, 0 of 96 rows dropped" in done.err
    assert all(torch.equal(a, b) for a, b in zip(weights(folder), plain, strict=True))


# The log


LOGGED = """
from gan import *
import json
loader = DataLoader(torch.randn(22, 2) + 1, batch_size=8)  # 8, 8, 6
D, G = Critic(), make_generator()
optD, optG = (torch.optim.SGD(n.parameters(), 1e-2) for n in (D, G))
lines = []
for epoch in range(3):
    for x in loader:
        optD.zero_grad()
        (D(G(torch.randn(len(x), 3)).detach()).mean() - D(x).mean()).backward()
        optD.step()
        optG.zero_grad()
        scores = D(G(torch.randn(len(x), 3)))
        (-scores.mean()).backward()
        optG.step()
        ranked = scores.detach().flatten().sort(descending=True).values
        k = max(1, int(max(0.5 ** epoch, 0.25) * len(x)))
        lines.append({
            "step": len(lines) + 1, "epoch": epoch, "batch": len(x), "k": k,
            "kept_score": ranked[:k].mean().item(),
            "dropped_score": ranked[k:].mean().item() if k < len(x) else None,
            "threshold": ranked[k - 1].item(),
        })
print(json.dumps(lines))
"""


def test_the_log_holds_one_correct_line_a_generator_step(folder):
    script(folder, LOGGED)
    done = topk_run(folder, "train.py", flags=[*SETTINGS, "--log", "steps.jsonl"])
    assert done.status == 0, done.err
    expected = json.loads(done.out)
    found = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert [line["k"] for line in expected] == [8, 8, 6, 4, 4, 3, 2, 2, 1]
    assert len(found) == len(expected)
    for line, right in zip(found, expected, strict=True):
        assert list(line) == list(right)
        for name, value in right.items():
            assert line[name] == (value if value is None else pytest.approx(value, rel=1e-12))


def test_the_log_survives_ctrl_c_and_nan(folder):
    script(
        folder,
        """
        from gan import *
        D, G = Critic(), make_generator()
        opt = torch.optim.SGD(G.parameters(), 1e-2)
        for n, x in enumerate(loader):
            z = torch.randn(8, 3)
            if n == 2: z[1] = float("nan")
            opt.zero_grad(); (-D(G(z)).mean()).backward(); opt.step()
            if n == 2: raise KeyboardInterrupt
        """,
    )
    done = topk_run(folder, "train.py", flags=["--log", "steps.jsonl"])
    assert done.status == -signal.SIGINT
    found = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found] == [1, 2, 3]
    assert "1 non-finite scores" in done.err


# What is left behind


def test_a_run_leaves_the_process_as_it_found_it(folder):
    script(folder, TRAIN)
    script(
        folder,
        """
        import sys, torch
        from torch.optim.optimizer import _global_optimizer_post_hooks as post_hooks
        from torch.optim.optimizer import _global_optimizer_pre_hooks as pre_hooks
        from torch.utils.data.dataloader import _BaseDataLoaderIter as It
        from topk_plugin import cli

        def patched():
            methods = [torch.nn.Module.__init__, torch.nn.DataParallel.__init__]
            methods += [It.__init__, It.__next__, It._reset]
            methods += [torch.optim.Optimizer.state_dict, torch.optim.Optimizer.load_state_dict]
            return methods, len(post_hooks), len(pre_hooks)

        before = patched()
        sys.path.insert(0, ".")
        status = cli.main(["run", "--critic", "gan:Critic", "--", "train.py"])
        assert status == 0
        assert patched() == before, (patched(), before)
        import gan
        for name in ("_save_to_state_dict", "_load_from_state_dict"):
            assert name not in vars(gan.Critic)
        assert gan.Critic.forward.__qualname__ == "Critic.forward"
        assert not hasattr(gan.Critic.forward, "__wrapped__")
        """,
        "outer.py",
    )
    done = plain_run(folder, "outer.py")
    assert done.status == 0, done.err
