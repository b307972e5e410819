"""Processes that a launched script starts, and the ranks of a distributed run, are gated too."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from launched import ENVIRONMENT, Done, plain_run, topk_run

from topk_plugin.run import activation, children

GAN = '''
"""Nets, data and a loop; top-k by hand where `hand` is passed."""
import sys, torch
from torch import nn
from torch.utils.data import DataLoader

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return self.net(x)


class Other(Critic):
    pass


class Ungated(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))


def train(file=None, epochs=3, critic=Critic, hand=False, seed=0):
    torch.manual_seed(seed)
    loader = DataLoader(torch.randn(32, 2) + 1, batch_size=8, shuffle=True)
    D, G = critic(), nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    optD, optG = (torch.optim.Adam(net.parameters(), 1e-2) for net in (D, G))
    for epoch in range(epochs):
        k = int(max(0.5**epoch, 0.25) * 8) if hand else 8
        for x in loader:
            optD.zero_grad()
            (D(G(torch.randn(8, 3)).detach()).mean() - D(x).mean()).backward()
            optD.step()
            optG.zero_grad()
            (-D(G(torch.randn(8, 3))).flatten().topk(k).values.mean()).backward()
            optG.step()
    if file:
        torch.save([D.state_dict(), G.state_dict()], file)
'''
SETTINGS = ("--gamma", "0.5", "--nu", "0.25")
VERDICT = "12 generator steps gated, 40 of 96 rows dropped, 3 epochs ended, last k 2 of 8"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "gan.py").write_text(GAN)
    return tmp_path


def script(folder: Path, text: str, name: str = "train.py") -> None:
    (folder / name).write_text(textwrap.dedent(text))


def gated_run(folder: Path, *flags: str, **options) -> Done:
    return topk_run(folder, "train.py", flags=[*SETTINGS, *flags], **options)


def difference(a: Path, b: Path) -> float:
    """Largest difference of any weight in two files."""
    nets = zip(torch.load(a), torch.load(b), strict=True)
    return max((x[name] - y[name]).abs().max().item() for x, y in nets for name in x)


def verdicts(err: str) -> list[str]:
    """Without the numbers of processes, sorted."""
    found = re.findall(
        r"^top-k (.*verdict: .*?), \d+ non-finite|^top-k (.*verdict: .*)$", err, re.M
    )
    return sorted(re.sub(r"process \d+", "process N", a or b) for a, b in found)


# Forks


def test_forked_children_speak_for_themselves(folder):
    script(
        folder,
        """
        import multiprocessing, os, sys
        from gan import *
        train(hand=False)
        def child():
            train("forked.pt", epochs=2)
        if not os.fork():
            train(epochs=1)
            sys.exit(4)
        print(os.waitstatus_to_exitcode(os.wait()[1]))
        processes = [multiprocessing.Process(target=target) for target in (child, int)]
        for process in processes: process.start()
        for process in processes: process.join()
        """,
    )
    done = gated_run(folder)
    assert (done.status, done.out) == (0, "4\n"), done.err
    # their k is what the process they were forked from had reached
    assert verdicts(done.err) == [
        "(process N) verdict: 4 generator steps gated, 24 of 32 rows dropped, 1 epoch ended, "
        "last k 2 of 8",
        "(process N) verdict: 8 generator steps gated, 48 of 64 rows dropped, 2 epochs ended, "
        "last k 2 of 8",
        "verdict: 12 generator steps gated, 40 of 96 rows dropped, 3 epochs ended, last k 2 of 8",
    ]
    assert done.err.count("top-k ACTIVE") == 1
    assert len(re.findall(r"^top-k \(process \d+\) ACTIVE: critic gan:Critic", done.err, re.M)) == 2
    assert len(set(re.findall(r"process (\d+)", done.err))) == 2


START = """
import multiprocessing, os, signal, sys
from gan import *

def start(*jobs):
    processes = [multiprocessing.Process(target=job, args=args) for job, *args in jobs]
    for process in processes: process.start()
    for process in processes: process.join()
    return [process.exitcode for process in processes]

def killed():
    train()
    os.kill(os.getpid(), signal.SIGKILL)

def wide():
    train(critic=lambda: nn.Sequential(Critic(), nn.Linear(1, 5), Wide(5, 5)))

class Wide(nn.Linear):
    pass
"""
RUNS = {  # what the script does, the critic; exit status, the launcher's verdict, in the errors
    "all gated": (
        "start([train], [train, None, 1, Other])",
        "gan:Critic",
        (0, "2 processes gated, 16 generator steps", ""),
    ),
    "one not gated": (
        "start([train], [train, None, 1, Ungated])",
        "gan:Critic",
        (
            3,
            "1 process gated, 12 generator steps; NOT ACTIVE in process N",
            "topk: SeamNotFound: in process N: --critic gan:Critic was never built. Modules that",
        ),
    ),
    "never built": (
        "start([train])",
        "gan:Other",
        (3, "NOT ACTIVE in process N", "topk: SeamNotFound: in process N: --critic gan:Other"),
    ),
    "never built, and the script fails by itself": (
        "start([train]); sys.exit(5)",
        "gan:Other",
        (5, "NOT ACTIVE in process N", ""),
    ),
    "the launcher trains too": (
        "train(); start([train, None, 1, Ungated])",
        "gan:Critic",
        (3, "12 generator steps gated, 40 of 96 rows dropped, 3 epochs ended, last k 2 of 8", ""),
    ),
    "a child that dies by an error of top-k": (
        "sys.exit(max(start([wide])))",
        "__main__:Wide",
        (3, "NOT ACTIVE in process N", "topk: ScoreShapeError: in process N: the critic returns"),
    ),
    "a child that dies by an error of its own": (
        "assert start([train, '/no/such/folder', 1, Ungated]) == [1]",
        "gan:Critic",
        (0, "NOT ACTIVE in process N", ""),
    ),
    "killed": (
        "start([killed])",
        "gan:Critic",
        (
            0,
            "1 process with optimizer steps left no verdict (ended from outside, or still running)",
            "",
        ),
    ),
}


@pytest.mark.parametrize("case", RUNS)
def test_the_launcher_sums_up_what_its_children_reported(case, folder):
    text, critic, (status, verdict, error) = RUNS[case]
    script(folder, START + text)
    done = gated_run(folder, critic=critic)
    assert done.status == status, done.err
    assert verdicts(done.err)[-1] == f"verdict: {verdict}"
    errors = re.findall(r"^topk: .*", done.err, re.MULTILINE)
    assert len(errors) == (status == 3)
    assert error in re.sub(r"process \d+", "process N", "".join(errors))


def test_each_process_writes_whole_lines_to_the_log(folder):
    script(folder, START + "train(); start([train, None, 30], [train, None, 30])")
    done = gated_run(folder, "--log", "steps.jsonl")
    assert done.status == 0, done.err
    lines = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    by_process: dict[int | None, list[int]] = {}
    for line in lines:
        by_process.setdefault(line.get("process"), []).append(line["step"])
    assert by_process.pop(None) == [*range(1, 13)]
    assert [*by_process.values()] == [[*range(13, 133)]] * 2  # the fork counts on


def test_an_idle_executor_is_not_waited_for(folder):
    """Plain Python stops its process too, but not before the launcher's verdict."""
    script(
        folder,
        """
        from concurrent.futures import ProcessPoolExecutor
        from gan import *
        pool = ProcessPoolExecutor(1)
        pool.submit(train, None, 1).result()
        """,
    )
    done = gated_run(folder)
    assert done.status == 0
    assert verdicts(done.err) == [
        "(process N) verdict: 4 generator steps gated, 0 of 32 rows dropped, 1 epoch ended, "
        "last k 8 of 8",
        "(process N) verdict: no row was dropped: k is B until an epoch ends, and none ended "
        "before the last generator step. Train for more epochs, or pass --every N",
        f"verdict: {RUNS['killed'][2][1]}",
    ]


# What processes that start anew inherit


WAYS = {  # to start processes that train; what they are called
    "multiprocessing": (
        """
        import multiprocessing
        import gan

        if __name__ == "__main__":
            processes = []
            for name in ("spawn", "forkserver"):
                start = multiprocessing.get_context(name).Process
                processes.append(start(target=gan.train, args=(name + ".pt",)))
                processes[-1].start()
            for process in processes:
                process.join()
                assert process.exitcode == 0
        """,
        ("spawn", "forkserver"),
    ),
    "subprocess": (  # by way of one without torch; a data loader's worker says nothing
        """
        import subprocess, sys
        import gan

        if __name__ == "__main__":
            code = "import subprocess, sys; subprocess.run([sys.executable, 'inner.py'])"
            subprocess.run([sys.executable, "-c", code], check=True)
            workers = gan.DataLoader(range(2), num_workers=1, multiprocessing_context="spawn")
            assert [int(x) for x in workers] == [0, 1]
        """,
        ("subprocess",),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_processes_that_start_anew(way, folder):
    text, names = WAYS[way]
    script(folder, text)
    script(folder, "import gan; gan.train('subprocess.pt')", "inner.py")
    done = gated_run(folder)
    n = len(names)
    assert done.status == 0, done.err
    assert len(re.findall(r"top-k \(process \d+\) ACTIVE: critic gan:Critic", done.err)) == n
    assert verdicts(done.err) == [
        *[f"(process N) verdict: {VERDICT}"] * n,
        f"verdict: {n} process{'es' * (n > 1)} gated, {12 * n} generator steps",
    ]
    assert len(done.err.splitlines()) == 2 * n + 1, done.err
    script(folder, "import gan; gan.train('hand.pt', hand=True); gan.train('plain.pt')")
    assert plain_run(folder, "train.py").status == 0
    assert difference(folder / "plain.pt", folder / "hand.pt") > 1e-6
    for name in names:
        assert difference(folder / f"{name}.pt", folder / "hand.pt") < 1e-12, name


NESTED = """
import multiprocessing, os, subprocess, sys
import gan
from topk_plugin import cli

def nested(*flags):
    sys.exit(cli.main(["run", "--critic", "gan:Critic", *flags, "--", "inner.py", "by_fork"]))

def start(*flags):
    process = multiprocessing.Process(target=nested, args=flags)
    process.start()
    process.join()
    assert process.exitcode == 0

start("--gamma", "0.5", "--nu", "0.25")
os.rename("by_fork.pt", "gated.pt")
start("--no-enabled")
before = os.environ["TOPK_ACTIVATION"], os.environ["PYTHONPATH"]
command = [sys.executable, "-m", "topk_plugin", "run", "--critic", "gan:Critic"]
command += ["--gamma", "0.5", "--nu", "0.25", "--", "inner.py", "by_subprocess"]
subprocess.run(command, check=True)
"""


@pytest.mark.slow
def test_a_launch_inside_a_launch_takes_its_place(folder):
    script(folder, NESTED)
    script(folder, "import sys, gan; gan.train(sys.argv[1] + '.pt')", "inner.py")
    done = gated_run(folder, "--gamma", "0.9", "--nu", "0.1")
    assert done.status == 0, done.err
    assert done.err.count("ACTIVE") == 2
    assert verdicts(done.err) == [
        f"verdict: {VERDICT}",
        f"verdict: {VERDICT}",
        "verdict: 2 processes gated, 24 generator steps",
    ]
    script(folder, "import gan; gan.train('hand.pt', hand=True); gan.train('plain.pt')")
    plain_run(folder, "train.py")
    assert difference(folder / "gated.pt", folder / "hand.pt") < 1e-12
    assert difference(folder / "by_subprocess.pt", folder / "hand.pt") < 1e-12
    assert difference(folder / "by_fork.pt", folder / "plain.pt") == 0


@pytest.mark.parametrize("before", [None, "", "somewhere else", f"a{os.pathsep}{os.pathsep}b c"])
def test_the_environment_is_restored(before, monkeypatch):
    def found() -> tuple[str | None, str | None]:
        return os.environ.get("PYTHONPATH"), os.environ.get("TOPK_ACTIVATION")

    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("TOPK_ACTIVATION", "of a launcher further out")
    if before is not None:
        monkeypatch.setenv("PYTHONPATH", before)
    with pytest.raises(KeyboardInterrupt), children.environment("{}"):  # noqa: PT012
        path, activation = found()
        assert path == children.STARTUP + (os.pathsep + before if before else "")
        assert activation == "{}"
        with children.environment("[]"):
            assert found() == (path, "[]")
        with children.environment(None):
            assert found() == (before or None, None)
        raise KeyboardInterrupt
    assert found() == (before, "of a launcher further out")


SEE = """
import json, sys
modules = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
print(json.dumps([sys.path[1:], [type(finder).__name__ for finder in sys.meta_path], modules]))
"""


def see(folder: Path, activation: str | None, text: str = SEE) -> Done:
    """What a small process sees that is started with that activation."""
    script(folder, text, "see.py")
    with children.environment(activation):
        done = subprocess.run(
            [sys.executable, "see.py"], cwd=folder, capture_output=True, text=True, timeout=60
        )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("customized", [False, True])
def test_a_child_without_torch_sees_what_it_would_without_us(customized, tmp_path, monkeypatch):
    site = tmp_path / "another site"
    site.mkdir()
    if customized:
        (site / "sitecustomize.py").write_text("print('another sitecustomize')")
    monkeypatch.setenv("PYTHONPATH", str(site))
    plain, done = see(tmp_path, None), see(tmp_path, "{}")
    assert (done.status, done.err) == (0, plain.err) == (0, "")
    *printed, found = done.out.splitlines()
    *expected_print, expected = plain.out.splitlines()
    assert printed == expected_print
    (path, finders, modules), before = json.loads(found), json.loads(expected)
    if "sitecustomize" not in before[2]:  # of the machine's Python, or the other one
        assert modules.pop("sitecustomize") == str(Path(children.STARTUP) / "sitecustomize.py")
    assert [path, finders, modules] == [before[0], ["AfterTorch", *before[1]], before[2]]
    assert len(printed) == customized


FAKES = {  # stand-ins for the real modules, which take seconds to import
    "torch.py": "print('torch')",
    "topk_plugin/__init__.py": "print('begin'); import torch; print('end')",
    "topk_plugin/run/activation.py": "def inherit(): print('on')",
}


@pytest.fixture
def fakes(tmp_path):
    (tmp_path / "topk_plugin" / "run").mkdir(parents=True)
    for name, text in FAKES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import torch, torch; print('script')", "torch begin end on script"),
        ("import topk_plugin; print('script')", "begin torch end on script"),
        ("import importlib.util as u; u.find_spec('torch'); print('script')", "script"),
        ("try: import torch.no\nexcept ImportError: print('script')", "torch begin end on script"),
    ],
)
def test_top_k_is_switched_on_once_when_torch_can_be_used(fakes, text, expected):
    done = see(fakes, "{}", text)
    assert (done.status, done.out.split(), done.err) == (0, expected.split(), "")


def test_top_k_is_switched_on_where_torch_was_there_before(fakes):
    text = (
        "import os, sys, torch; os.environ['TOPK_ACTIVATION'] = '{}'; "
        f"sys.modules.pop('sitecustomize', None); sys.path.insert(0, {children.STARTUP!r}); "
        "import sitecustomize; print('script')"
    )
    done = see(fakes, None, text)
    assert (done.status, done.out.split()) == (0, ["torch", "begin", "end", "on", "script"])


def test_an_interpreter_without_topk_plugin_says_so_and_goes_on(fakes):
    (fakes / "topk_plugin" / "__init__.py").write_text("raise ImportError('no pluggy')")
    done = see(fakes, "{}", "import torch; print('script')")
    assert (done.status, done.out) == (0, "torch\nscript\n")
    assert re.fullmatch(
        rf"top-k NOT ACTIVE in process \d+: ImportError: no pluggy \({sys.executable}\)\n", done.err
    )
    assert see(fakes, "{}", "print('script')").err == ""


def test_a_child_whose_launcher_has_ended_says_its_error_itself(tmp_path, monkeypatch, capfd):
    reports = tmp_path / "reports"
    reports.mkdir()
    told = {"config": {"gamma": 0.5}, "critic": ["gan:Critic"], "adapter": None, "force": False}
    told |= {
        "log": None,
        "tensorboard": None,
        "roots": [],
        "reports": str(reports),
        "launcher": os.getpid(),
    }
    monkeypatch.setenv("TOPK_ACTIVATION", json.dumps(told))  # as os.exec leaves it
    activation.inherit()
    try:
        weight = torch.nn.Parameter(torch.ones(1))
        weight.grad = torch.ones(1)
        torch.optim.SGD([weight], 0.1).step()
    finally:
        activation._inherited[0].end()
    assert not reports.exists()
    err = capfd.readouterr().err
    assert "verdict: NOT ACTIVE, 1 optimizer step, none" in err
    assert f"topk: SeamNotFound: in process {os.getpid()}: --critic gan:Critic" in err


# Ranks


RANKS = """
import os, sys
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data.distributed import DistributedSampler
from gan import *


def work(rank, name, hand=False):
    if rank is None:  # torchrun knows
        dist.init_process_group("gloo")
        rank = dist.get_rank()
    else:
        store = f"file://{os.getcwd()}/store of {name}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.manual_seed(0)
    G = DistributedDataParallel(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)))
    D = DistributedDataParallel(Critic())
    optD, optG = (torch.optim.Adam(net.parameters(), 1e-2) for net in (D, G))
    data = torch.randn(40, 2) + 1
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=8, sampler=sampler)  # 8, 8 and 4 rows on each rank
    torch.manual_seed(1 + rank)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for x in loader:
            optD.zero_grad()
            (D(G(torch.randn(len(x), 3)).detach()).mean() - D(x).mean()).backward()
            optD.step()
            optG.zero_grad()
            k = int(max(0.5**epoch, 0.25) * len(x)) if hand else len(x)
            (-D(G(torch.randn(len(x), 3))).flatten().topk(k).values.mean()).backward()
            optG.step()
    dist.destroy_process_group()
    if rank == 0:
        torch.save([D.state_dict(), G.state_dict()], f"{name}.pt")


if __name__ == "__main__":
    name, start = sys.argv[1:3]
    if start == "torchrun":
        work(None, name)
    else:
        mp.start_processes(work, (name, "hand" in sys.argv), nprocs=2, start_method=start)
"""
OF_RANK = "verdict: 9 generator steps gated, 25 of 60 rows dropped, 3 epochs ended, last k 1 of 4"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture
def ranks(folder):
    script(folder, RANKS, "ranks.py")
    return folder


def check_ranks(folder: Path, done: Done) -> None:
    """The weights are those of top-k by hand on each rank; one rank spoke, and kept the log."""
    assert done.status == 0, done.err
    assert plain_run(folder, "ranks.py", "hand", "fork", "hand").status == 0
    assert difference(folder / "gated.pt", folder / "hand.pt") < 1e-12
    assert done.err.count("ACTIVE") == 1
    log = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    assert [line["k"] for line in log] == [8, 8, 4, 4, 4, 2, 2, 2, 1]
    assert "process" not in log[0]


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn", "torchrun"])
def test_ranks_that_a_script_starts(start, ranks):
    arguments = ["ranks.py", "gated", start]
    command = [*TORCHRUN, *arguments] if start == "torchrun" else arguments
    done = topk_run(ranks, *command, flags=[*SETTINGS, "--log", "log"])
    check_ranks(ranks, done)
    assert verdicts(done.err) == [
        f"(rank 0) {OF_RANK}",
        "verdict: 2 processes gated, 18 generator steps",
    ]


@pytest.mark.slow
def test_each_rank_of_a_torchrun_is_a_launcher(ranks):
    # the first --: torchrun takes --nu and --log for its own --numa-binding and --log-dir
    command = [
        "-m",
        "--",
        "topk_plugin",
        "run",
        "--critic",
        "gan:Critic",
        *SETTINGS,
        "--log",
        "log",
        "--",
    ]
    done = subprocess.run(
        [sys.executable, *TORCHRUN, *command, "ranks.py", "gated", "torchrun"],
        cwd=ranks,
        capture_output=True,
        text=True,
        timeout=120,
        env=ENVIRONMENT,
    )
    check_ranks(ranks, Done(done.returncode, done.stdout, done.stderr))
    assert verdicts(done.stderr) == [OF_RANK]


def test_ranks_without_effect_fail_the_run(ranks):
    done = topk_run(ranks, "ranks.py", "plain", "fork", critic="gan:Other")
    assert done.status == 3
    assert verdicts(done.err) == [
        "(rank 0) verdict: NOT ACTIVE, 18 optimizer steps, none gated",
        "verdict: NOT ACTIVE in rank 0, rank 1",
    ]
    assert re.findall(r"SeamNotFound: in rank \d: --critic gan:Other", done.err)
    assert plain_run(ranks, "ranks.py", "hand", "fork", "hand").status == 0
    assert difference(ranks / "plain.pt", ranks / "hand.pt") > 1e-6
