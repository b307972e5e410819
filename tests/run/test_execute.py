"""What a script sees and how it ends is what plain Python shows; a wrong command is said first."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import launched
import pytest
from launched import Done, topk_run
from short_scripts import TRAIN, python, script

from topk_plugin import cli

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


@pytest.mark.slow
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
    assert re.search(r"top-k verdict: \d+ generator steps? gated", err)
    assert "KeyboardInterrupt" in err
    assert "topk_plugin/run/execute.py" not in err
    assert "topk_plugin/run/launch.py" not in err
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
    assert "NOT ACTIVE, 1 optimizer step, none gated" in done.err
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
    "a critic, and critics that are found": (
        ["--critic", "m:C", "--find", "--", "train.py"],
        ["found both of --critic and --find"],
    ),
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
