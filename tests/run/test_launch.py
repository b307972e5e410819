"""What `topk run` says of a training, by its settings: the header, the verdict, errors, the log."""

import json
import signal

import pytest
import torch
from launched import plain_run, topk_run
from short_scripts import SETTINGS, TRAIN, TRAIN_AND_WRITE, largest_difference, script, weights

# What cannot work

WHILE_RUNNING = {
    "no such class": (
        TRAIN,
        "gan:Critik",
        ["SeamNotFound: --critic gan:Critik: module gan has no such class. "]
        + ["Did you mean gan:Critic?"],
    ),
    "a class that is never built": (
        "from gan import *\nclass Spare(nn.Module): pass\ntrain(Critic(), make_generator())\n",
        "__main__:Spare",
        [
            "SeamNotFound: --critic __main__:Spare was never built",
            "24 optimizer steps",
            "gan:Critic",
        ],
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
        gan.loader = [torch.randn(8, 2) for _ in range(101)]
        train(Critic(), make_generator())
        """,
    )
    done = topk_run(folder, "train.py")
    assert done.status == 0
    assert "k never decayed (no DataLoader fed a generator step): pass --every N" in done.err
    assert done.err.count("note: no DataLoader fed any of 100 generator steps") == 1
    for flags in (["--every", "5"], ["--gamma", "1"]):
        other = topk_run(folder, "train.py", flags=flags).err
        assert "never decayed" not in other
        assert "note:" not in other


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
    assert early.count("NOT ACTIVE yet: --critic gan:Critic was never built. 200 optimizer st") == 1


# Settings


@pytest.mark.parametrize(
    ("flags", "env", "last"),
    [
        ([], {}, "decays x0.99 each epoch to 4"),
        ([], {"TOPK_GAMMA": "0.9", "TOPK_NU": "0.25"}, "decays x0.9 each epoch to 2"),
        (["--gamma", "0.8"], {"TOPK_GAMMA": "0.9"}, "decays x0.8 each epoch to 4"),
        (
            ["--restore", "10:20"],
            {},
            "decays x0.99 each epoch to 4 until epoch 10, back to B at epoch 20",
        ),
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
    assert "1 non-finite score" in done.err
