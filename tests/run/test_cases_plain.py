"""Under `topk run` a script finds torch as it is: scripts that did not, and their kin."""

import inspect
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from launched import plain_run, topk_run
from torch import nn
from torches import compiles, needs_torch, twice

from topk_plugin import TopKConfig
from topk_plugin.check.audit import Audit
from topk_plugin.loop.intercept import is_intercepted
from topk_plugin.run.activation import Activation, Launch

CASES = Path(__file__).parents[1] / "cases"
SETTINGS = ("--gamma", "0.5", "--nu", "0.25")
ACTIVE = "top-k ACTIVE: critic small:Judge, direction high, k 16 of 16"


@pytest.fixture
def folder(tmp_path):
    for name in ("small", "keywords", "scripted", "compiled", "streams", "transforms"):
        shutil.copy(CASES / f"{name}.py", tmp_path)
    return tmp_path


def run(folder, *arguments, **more):
    return topk_run(folder, *arguments, critic="small:Judge", flags=SETTINGS, **more)


# --- names, defaults and keywords of parameters -------------------------------------------------


class Judge(nn.Module):
    """A critic with parameters of every kind."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 1)

    def forward(self, x, /, labels: torch.Tensor | None = None, *, scale: float = 1.0):
        return self.net(x) * scale


def functions() -> dict[tuple[str, str], types.FunctionType]:
    """All functions of torch's modules and classes, and of the critic, by owner and name."""
    found = {("Judge", name): f for name, f in vars(Judge).items()}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != "torch" or module is None:
            continue
        for key, value in list(vars(module).items()):
            found[name, key] = value
            if isinstance(value, type) and value.__module__.startswith("torch"):
                owner = f"{value.__module__}.{value.__qualname__}"
                found |= {(owner, own): f for own, f in list(vars(value).items())}
    return {key: f for key, f in found.items() if isinstance(f, types.FunctionType)}


@needs_torch("2.3", "what torch.compile itself replaces is replaced at once before")
def test_everything_that_is_wrapped_looks_as_before():
    """Wrappers renamed parameters, so that calls by keyword were TypeErrors."""
    here = Path(__file__)
    script = (
        f"import sys; sys.path[:0] = {[str(here.parent), str(here.parents[1])]!r}; "
        f"import {here.stem} as tests; tests.all_that_is_wrapped()"
    )  # in a process where no test has left anything wrapped
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def all_that_is_wrapped():
    before = functions()
    launch = Launch(TopKConfig(gamma=0.5, nu=0.5), critic=(f"{__name__}:Judge",))
    activation = Activation(launch, [])
    activation.start()
    try:
        with Audit(activation.topk, activation.seam, 1):
            judge = Judge()
            assert is_intercepted(judge)
            now = functions()
            for name in ("_save_to_state_dict", "_load_from_state_dict"):  # wrapped on its class
                assert name in vars(Judge)
                was, is_ = getattr(nn.Module, name), getattr(Judge, name)
                assert inspect.getfullargspec(was) == inspect.getfullargspec(is_)
    finally:
        activation.close(succeeded=False, verdict=False)
    wrapped = {key for key, f in before.items() if now.get(key) is not f}
    assert wrapped >= {
        ("Judge", "forward"),
        ("torch.nn.modules.module.Module", "__init__"),
        ("torch.nn.modules.module.Module", "zero_grad"),
        ("torch.nn.modules.module.Module", "compile"),
        ("torch.nn.parallel.data_parallel.DataParallel", "__init__"),
        ("torch.optim.optimizer.Optimizer", "__init__"),
        ("torch.optim.optimizer.Optimizer", "zero_grad"),
        ("torch.optim.optimizer.Optimizer", "state_dict"),
        ("torch.optim.optimizer.Optimizer", "load_state_dict"),
        ("torch.utils.data.dataloader._BaseDataLoaderIter", "__init__"),
        ("torch.utils.data.dataloader._BaseDataLoaderIter", "__next__"),
        ("torch.utils.data.dataloader._BaseDataLoaderIter", "_reset"),
        ("torch.fx._symbolic_trace.Tracer", "trace"),
        ("torch.jit._recursive", "create_script_module"),
        ("torch._dynamo.eval_frame.OptimizedModule", "__init__"),
        ("torch.autograd", "backward"),
    }
    for key in wrapped:
        was, is_ = before[key], now[key]
        assert inspect.signature(was) == inspect.signature(is_), key
        assert inspect.getfullargspec(is_) == inspect.getfullargspec(inspect.unwrap(was)), key
        for attribute in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__"):
            assert getattr(was, attribute) == getattr(is_, attribute), (key, attribute)
    assert functions() == before  # and all of it is put back


@needs_torch("2.3", "some of what is called is new")
def test_calls_by_keyword(folder):
    """``load_state_dict(state_dict=…)`` was a TypeError: torch's distributed checkpoints use it."""
    assert plain_run(folder, "keywords.py").out == "by keyword\n"
    done = run(folder, "keywords.py")
    assert (done.status, done.out) == (0, "by keyword\n"), done.err
    assert "verdict: 4 generator steps gated" in done.err


# --- scripted, traced ---------------------------------------------------------------------------


def test_a_critic_that_is_scripted_and_drawn(folder):
    """``torch.jit.script`` failed; ``add_graph`` was a TracingCheckError."""
    pytest.importorskip("tensorboard")
    plain = plain_run(folder, "scripted.py")
    done = run(folder, "scripted.py")
    assert (done.status, done.out) == (plain.status, plain.out) == (0, "saved (2, 1)\n"), done.err
    assert "verdict: 4 generator steps gated" in done.err


def test_transforms_of_its_gradient(folder):
    """Forward mode was refused: a gate did not say what becomes of a tangent."""
    plain = plain_run(folder, "transforms.py")
    done = run(folder, "transforms.py")
    assert (done.status, done.out) == (plain.status, plain.out), done.err
    assert plain.status == 0


# --- compiled -----------------------------------------------------------------------------------

GATED = [
    "wrapper", "in place", "both", "twice", "loss", "copies", "critic step", "evaluation",
    "split step", "optimizer",
]  # fmt: skip


@pytest.fixture(scope="module")
def uncompiled(tmp_path_factory):
    """Weights that a training with top-k ends with, without torch.compile."""
    folder = tmp_path_factory.mktemp("uncompiled")
    for name in ("small", "compiled"):
        shutil.copy(CASES / f"{name}.py", folder)
    assert run(folder, "compiled.py", "plain", "eager").status == 0
    return weights(folder)


def weights(folder) -> torch.Tensor:
    nets = torch.load(folder / "weights.pt")
    return torch.cat([value.flatten() for net in nets for value in net.values()])


# what the others compile takes longer, and the gates stand outside of the graph
BACKENDS = {"wrapper": "inductor", "in place": "aot_eager"}
WAYS = [
    pytest.param(way, "eager", marks=twice) if way == "twice" else (way, "eager") for way in GATED
]
WAYS += [pytest.param(*one, marks=pytest.mark.slow) for one in BACKENDS.items()]


@compiles
@pytest.mark.parametrize(("way", "backend"), WAYS)
def test_a_compiled_critic_is_gated(way, backend, folder, uncompiled):
    """With ``fullgraph=True``, of the critic or in place, Dynamo's traceback ended the run."""
    done = run(folder, "compiled.py", way, backend)
    assert (done.status, done.out) == (0, "trained\n"), done.err
    assert f"{ACTIVE}, decays x0.5 each epoch to 4" in done.err
    assert "12 generator steps gated, 80 of 192 rows dropped, 3 epochs ended" in done.err
    # eager and compiled Adam differ in rounding
    assert (weights(folder) - uncompiled).abs().max() < 1e-5


@compiles
@pytest.mark.parametrize("way", ["whole step", "forward"])
def test_a_gate_inside_a_whole_graph_is_refused_in_the_first_step(way, folder):
    """Dynamo's traceback, and exit status 1."""
    assert plain_run(folder, "compiled.py", way, "eager").status == 0
    done = run(folder, "compiled.py", way, "eager")
    assert (done.status, done.out) == (3, "")
    error, verdict = done.err.splitlines()
    assert re.match(r"topk: SeamNotFound: a call .*D\.compile\(fullgraph=True\)", error)
    assert "verdict: NOT ACTIVE, 1 optimizer step, none" in verdict


# --- streams ------------------------------------------------------------------------------------


def left(folder, how, *status):
    plain, done = (start(folder, "streams.py", how, *status) for start in (plain_run, run))
    assert (done.status, done.out) == (plain.status, plain.out), done.err
    return done.err


@pytest.mark.parametrize("status", ["0", "5"])
@pytest.mark.parametrize("how", ["closed", "None", "broken pipe", "no stream"])
def test_the_verdict_goes_to_the_stream_that_is_left(how, status, folder):
    """With a stderr that was closed the run ended with status 1, and so with others."""
    err = left(folder, how, status)
    assert "verdict: 4 generator steps gated" in err
    said = (folder / "log.txt").read_text() if how == "closed" else err
    assert ACTIVE in said


@pytest.mark.parametrize("how", ["all None", "descriptor", "itself"])
def test_where_no_stream_is_left_nothing_is_said(how, folder):
    assert left(folder, how) == ""


def test_a_warning_in_a_step_is_no_error_where_stderr_is_closed(folder):
    """``warnings.warn`` raised ValueError out of the optimizer's step."""
    from torch.nn import Linear

    judge = {
        f"{name}.{key}": value
        for name, net in (("a", Linear(8, 16)), ("b", Linear(16, 1)))
        for key, value in net.state_dict().items()
    }
    torch.save(judge, folder / "judge.pt")
    assert "weights were loaded into the critic" in left(folder, "closed before")


def test_what_a_script_exits_with_and_the_verdict_without_a_stderr(folder):
    done = run(folder, "streams.py", "refused")
    assert done.status == 1
    assert "verdict: 4 generator steps gated" in done.err


@pytest.mark.parametrize("how", ["None", "descriptor", "closed"])
def test_an_error_of_ours_keeps_its_status(how, folder):
    (folder / "idle.py").write_text(
        f"import sys\nsys.argv[1:] = [{how!r}]\nimport small\nsmall.Judge.forward = "
        "lambda self, x: self.b(self.a(x.detach()))\nexec(open('streams.py').read())\n"
    )
    done = run(folder, "idle.py")
    assert done.status == 3
    assert ("topk: NoEffectError" in done.err) == (how != "descriptor")
