"""What each hook is asked and told, what it may answer, and that whoever errs is named."""

import launched
import pytest
import torch
from launched import topk_run
from losses import BATCH, LATENT, LOSSES, assert_same, best_rows, clear, error, gradients, make_topk
from plugged import (
    BROKEN,
    GAN,
    HOOKS,
    LOSS,
    WAYS,
    KeepBest,
    Watch,
    adapter,
    boom,
    by_hand,
    fraction,
    generator_step,
    networks,
    noise,
    plugin,
    settings,
    write,
)
from torch import nn
from torches import compiles, needs_torch

from topk_plugin import TopK, attach
from topk_plugin.config import TopKConfig
from topk_plugin.core.choice import KEPT, ROWS
from topk_plugin.core.ranking import kept_rows
from topk_plugin.errors import ConfigError, HookError
from topk_plugin.hooks import Progress
from topk_plugin.plugins import calls, manager
from topk_plugin.plugins.manager import plugin_manager
from topk_plugin.upstream import known

# Who erred is named


def provoke(hook):
    """Lets the hook of a plugin that raises be called."""
    topk = TopK(gamma=0.5, nu=0.5, hooks=[plugin(hook, boom)])
    G, D = networks()
    LOSS.of(topk(D(G(noise())))).backward()
    torch.optim.SGD(G.parameters(), 0.1).step()
    topk.end_epoch()
    known.adapters(plugin_manager(plugins=[plugin(hook, boom)]))


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_raises_names_itself(hook):
    expected = rf"plugin 'hooks\[0\] Plugin': its hook {hook} raised ZeroDivisionError: boom"
    with pytest.raises(HookError, match=expected) as caught:
        provoke(hook)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("gate", ["score", "shielded"])
def test_a_hook_that_raises_in_the_backward_of_an_attached_critic(gate):
    G, D = networks()
    topk = make_topk(4, gate=gate, hooks=[plugin("topk_select", boom)])
    with pytest.raises(HookError, match="topk_select raised ZeroDivisionError"), attach(D, topk):
        LOSS.of(D(G(noise()))).backward()


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_raises_in_a_launched_run(tmp_path, hook):
    """The working folder is on the path, and with it a distribution."""
    write(tmp_path, "train.py", GAN)
    write(tmp_path, "broken.py", BROKEN.format(hook))
    write(tmp_path, "b-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: b\nVersion: 1\n")
    write(tmp_path, "b-1.dist-info/entry_points.txt", "[topk_plugin]\nmine = broken\n")
    if hook == "topk_adapters":
        done = launched.run(tmp_path, ["run", "--adapter", "mimicry", "--", "train.py"])
    else:
        done = topk_run(tmp_path, "train.py", critic="__main__:Critic", flags=["--gamma", "0.5"])
    assert done.status == 3
    assert (
        f"topk: HookError: plugin 'mine': its hook {hook} raised ZeroDivisionError: boom; correct "
        "it, or leave it out with TOPK_DISABLE_PLUGINS=mine"
    ) in done.err
    assert f'broken.py", line 6, in {hook}' in done.err  # where to look

    env = {"TOPK_DISABLE_PLUGINS": "mine"}
    assert topk_run(tmp_path, "train.py", critic="__main__:Critic", env=env).status == 0


# Tracing


def test_tracing(monkeypatch, capsys):
    monkeypatch.setenv(calls.TRACE, "1")
    topk = make_topk(2, hooks=[plugin("topk_select", lambda scores, k: None)])
    output = torch.zeros(BATCH, 1, requires_grad=True)
    topk(output).mean().backward()
    topk.step()
    assert int(output.grad.count_nonzero()) == 2
    lines = capsys.readouterr().err.splitlines()
    asked = "(scores=float32(8,), k=float64()) -> "
    assert lines[-2:] == [
        f"top-k hook topk_select of 'hooks[0] Plugin'{asked}None",
        f"top-k hook topk_select of 'top-k'{asked}bool(8,)",
    ]
    assert lines[0].startswith(
        "top-k hook topk_fraction of 'top-k'(progress=Progress(epoch=0, steps=0), config=TopKConfig"
    )
    monkeypatch.setenv(calls.TRACE, "0")
    TopK()
    assert not capsys.readouterr().err


def test_tracing_observers_and_adapters(monkeypatch, capsys):
    monkeypatch.setenv(calls.TRACE, "1")
    watch = plugin("topk_selected", lambda selection: None)
    topk = TopK(hooks=[watch])
    topk(torch.zeros(BATCH, 1, requires_grad=True)).mean().backward()
    topk.step()
    assert "topk_selected of 'hooks[0] Plugin'(selection=Selection(step=1, epoch=0, batch=0))" in (
        capsys.readouterr().err
    )
    known.adapters(plugin_manager(plugins=[plugin("topk_adapters", lambda: [adapter()])]))
    assert "top-k hook topk_adapters of 'hooks[0] Plugin'() -> [Adapter]" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["yes", "2"])
def test_tracing_is_one_or_nothing(monkeypatch, value):
    monkeypatch.setenv(calls.TRACE, value)
    with pytest.raises(ConfigError, match=f"TOPK_TRACE_PLUGINS: found '{value}', expected 1 or 0"):
        TopK()


# What is called


def test_hooks_are_resolved_when_topk_is_built():
    manager = plugin_manager()
    ask = calls.first_result(manager, "topk_fraction")
    arguments = {"progress": Progress(0, 0), "config": TopKConfig()}
    manager.register(fraction(0.25), "later")
    assert ask(**arguments) == 1.0
    assert calls.first_result(manager, "topk_fraction")(**arguments) == 0.25


def test_no_step_calls_pluggy(monkeypatch):
    """Its calls cannot be compiled into a graph."""

    def refuse(*arguments, **keywords):
        raise AssertionError("pluggy was called")

    monkeypatch.setattr(manager.PluginManager, "_hookexec", refuse)
    with pytest.raises(AssertionError, match="pluggy was called"):
        plugin_manager(plugins=[plugin("topk_adapters", list)]).hook.topk_adapters()
    watch = Watch()
    topk = make_topk(3, hooks=[KeepBest(2), plugin("topk_scores", lambda output: None), watch])
    generator_step("shielded", topk)
    assert [step.step for step in watch.steps] == [1]
    assert watch.epochs == [Progress(1, 0)]
    assert topk.report().last_k == 2


# topk_select


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n", [2, 6])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_topk_select_may_keep_fewer_or_more_than_k(way, n, reduction):
    """Kept rows weigh B over their number."""
    loss = LOSSES["sum"] if reduction == "sum" else LOSS
    topk = make_topk(4, hooks=[KeepBest(n)], reduction=reduction, **settings(way))
    generator, _, rows = generator_step(way, topk, loss)
    expected, _, scores = by_hand(rows, loss)
    assert rows == best_rows(scores, n)
    assert error(generator, expected) < 1e-12
    report = topk.report()
    assert (report.rows, report.dropped) == (BATCH, BATCH - n)
    assert (report.last_batch, report.last_k) == (BATCH, n)


@pytest.mark.parametrize("way", WAYS[:-1])
def test_topk_select_may_keep_none(way):
    topk = make_topk(4, hooks=[KeepBest(0)], **settings(way))
    G, D = networks()
    with attach(D, topk) if way != "line A" else torch.enable_grad():
        LOSS.of((topk if way == "line A" else nn.Identity())(D(G(noise())))).backward()
        assert not any(gradient.any() for gradient in gradients(G))
        torch.optim.SGD(G.parameters(), 0.1).step()
    assert topk.report().dropped == BATCH


def test_topk_select_is_asked_once_by_gather():
    """What observers are told, and what is counted, is what was gathered."""
    asked = []

    def fewer_each_time(scores, k):
        asked.append(k)
        return kept_rows(scores, k - len(asked))

    watch = Watch()
    topk = make_topk(4, hooks=[plugin("topk_select", fewer_each_time), watch], **settings("gather"))
    _, _, rows = generator_step("gather", topk)
    assert len(rows) == 3
    assert len(asked) == 1
    assert watch.steps[0].calls[0].kept.nonzero().flatten().tolist() == rows
    assert topk.report().dropped == BATCH - 3


@pytest.mark.parametrize(
    "wrong",
    [
        lambda scores, k: scores,
        lambda scores, k: (scores > 0).long(),
        lambda scores, k: (scores > 0)[:-1],
        lambda scores, k: (scores > 0)[:, None],
        lambda scores, k: (scores > 0).to("meta"),
        lambda scores, k: (scores > 0).tolist(),
        lambda scores, k: 3,
    ],
    ids=["scores", "long", "rows", "dims", "device", "list", "number"],
)
@pytest.mark.parametrize("way", WAYS)
def test_topk_select_wrong_results(way, wrong):
    topk = make_topk(4, hooks=[plugin("topk_select", wrong)], **settings(way))
    message = (
        r"plugin 'hooks\[0\] Plugin': its hook topk_select returned .* for scores=float64\(8,\)"
        ".*, expected a bool mask of the scores' shape"
    )
    with pytest.raises(HookError, match=message):
        generator_step(way, topk)


def test_topk_select_that_nobody_answers(monkeypatch):
    monkeypatch.setenv(manager.DISABLE, "top-k")
    mine = [plugin("topk_select", lambda scores, k: None), fraction(0.5)]
    topk = TopK(hooks=mine)
    with pytest.raises(HookError, match="no plugin answered the hook topk_select"):
        topk(torch.zeros(4, requires_grad=True)).mean().backward()


@compiles
@pytest.mark.parametrize("mine", ["best 3", "bottom-k", "random-k"])
def test_topk_select_in_one_graph_for_all_values_of_k(mine):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    G, D = networks()
    chosen = {"hooks": [KeepBest(3)]} if mine == "best 3" else {"plugins": [mine]}
    topk = TopK(gamma=0.8, nu=0.01, **chosen)
    step = torch.compile(lambda z: LOSS.of(topk(D(G(z)))), fullgraph=True, backend="aot_eager")
    steps = []
    topk.observers.append(steps.append)
    sizes = [8, 6, 5, 4, 3, 2, 2, 1, 1]
    for k in sizes:
        assert topk.k(BATCH) == k
        clear(G, D)
        step(noise()).backward()
        found = gradients(G)
        topk.step()
        topk.end_epoch()
        kept = 3 if mine == "best 3" and k < BATCH else k
        assert steps[-1].tally[KEPT] == kept
        assert steps[-1].calls == ()
        if mine != "random-k":
            clear(G, D)
            scores = D(G(noise())).flatten()
            rows = best_rows(scores.tolist(), kept, largest=mine == "best 3")
            LOSS.of(scores[rows]).backward()
            assert error(found, gradients(G)) < 1e-12
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@needs_torch("2.14", "an error in what is traced says nothing of its own before")
def test_topk_select_that_fails_while_it_is_compiled():
    topk = TopK(hooks=[plugin("topk_select", boom)])
    G, D = networks()
    step = torch.compile(lambda z: LOSS.of(topk(D(G(z)))), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="topk_select raised ZeroDivisionError: boom"):
        step(noise()).backward()


# topk_fraction


def linear(asked=None):
    def answer(progress, config):
        if asked is not None:
            asked.append(progress)
        return max(config.nu, 1 - progress.epoch / 8)

    return plugin("topk_fraction", answer)


def test_topk_fraction_is_a_schedule():
    topk, sizes = TopK(gamma=0.5, nu=0.5, hooks=[linear()]), []
    for _ in range(6):
        sizes.append(topk.k(BATCH))
        _, _, rows = generator_step("line A", topk)
        assert len(rows) == sizes[-1]
        topk.end_epoch()
    assert sizes == [8, 7, 6, 5, 4, 4]


def test_topk_fraction_is_asked_again_by_a_resumed_run():
    topk = TopK(nu=0.25, hooks=[linear()])
    for _ in range(3):
        generator_step("line A", topk)
        topk.end_epoch()
    asked = []
    resumed = TopK(nu=0.25, hooks=[linear(asked)])
    resumed.load_state_dict(topk.state_dict())
    assert asked == [Progress(0, 0), Progress(3, 3)]
    assert resumed.k(BATCH) == 5
    assert len(generator_step("line A", resumed)[2]) == 5


def test_topk_fraction_every_n_generator_steps():
    asked = []
    topk = TopK(every=2, nu=0.25, hooks=[linear(asked)])
    kept = [len(generator_step("line A", topk)[2]) for _ in range(6)]
    assert kept == [8, 8, 7, 7, 6, 6]
    assert asked == [Progress(0, 0), Progress(1, 2), Progress(2, 4), Progress(3, 6)]


def test_topk_fraction_is_not_asked_where_topk_is_off():
    assert TopK(enabled=False, hooks=[fraction(0.25)]).k(BATCH) == BATCH


@pytest.mark.parametrize("wrong", [0, 2, -0.5, float("nan"), "x", "0.5", [0.5]])
def test_topk_fraction_wrong_results(wrong):
    message = (
        r"plugin 'hooks\[0\] Plugin': its hook topk_fraction returned .* for progress=Progress"
        r".*, expected a number in \(0, 1\]"
    )
    with pytest.raises(HookError, match=message):
        TopK(hooks=[fraction(wrong)])


# topk_selected and topk_epoch_ended


@pytest.mark.parametrize("gate", ["score", "shielded"])
def test_topk_selected_is_called_once_a_generator_step(gate):
    G, D = networks()
    watch = Watch(next(G.parameters()))
    topk = make_topk(3, hooks=[watch], gate=gate)
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in (D, G)]
    scores, weights = [], []
    with attach(D, topk):
        for _ in range(2):
            clear(G, D)
            (D(noise() @ torch.ones(LATENT, 6).double()) - D(G(noise()))).mean().backward()
            optimizers[0].step()
            clear(G, D)
            scores = [D(G(noise())).detach(), D(G(noise() + 1))]
            (LOSS.of(D(G(noise()))) + LOSS.of(scores[1])).backward()
            before = len(watch.steps)
            optimizers[1].step()
            assert len(watch.steps) == before + 1
            weights.append(next(G.parameters()).detach().clone())
    assert [(s.step, s.epoch, s.batch) for s in watch.steps] == [(1, 1, 16), (2, 1, 16)]
    assert_same(watch.weights, weights)  # the optimizer had stepped
    calls = sorted(
        watch.steps[-1].calls, key=lambda call: not torch.equal(call.scores, scores[0].flatten())
    )
    for call, expected in zip(calls, scores, strict=True):
        assert torch.equal(call.scores, expected.detach().flatten())
        assert call.kept.nonzero().flatten().tolist() == best_rows(call.scores.tolist(), 3)
        assert not call.scores.requires_grad
    assert watch.steps[-1].tally[KEPT] == 6


def test_topk_selected_of_line_a():
    watch = Watch()
    topk = make_topk(3, hooks=[watch])
    G, D = networks()
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    for _ in range(2):
        scores = [D(G(noise())), D(G(noise() + 1))]
        sum(LOSS.of(topk(s)) for s in scores).backward()
        optimizer.step()
    assert [(s.step, s.epoch, s.batch, len(s.calls)) for s in watch.steps] == [
        (1, 1, 0, 2),
        (2, 1, 0, 2),
    ]
    assert watch.steps[-1].tally[ROWS] == 2 * BATCH
    found = sorted(call.scores.tolist() for call in watch.steps[-1].calls)
    assert found == sorted(s.flatten().tolist() for s in scores)
    for call in watch.steps[-1].calls:
        assert call.kept.nonzero().flatten().tolist() == best_rows(call.scores.tolist(), 3)


def test_topk_epoch_ended_counts_it():
    watch = Watch()
    topk = TopK(gamma=0.5, nu=0.25, hooks=[watch])
    seen = []
    topk_seen = plugin("topk_epoch_ended", lambda progress: seen.append(other.k(BATCH)))
    other = TopK(gamma=0.5, nu=0.25, hooks=[topk_seen])
    for _ in range(2):
        generator_step("line A", topk)
        topk.end_epoch()
        other.end_epoch()
    assert watch.epochs == [Progress(1, 1), Progress(2, 2)]
    assert seen == [4, 2]  # k has decayed by then


def test_topk_epoch_ended_of_a_data_loader():
    G, D = networks()
    watch = Watch()
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    loader = torch.utils.data.DataLoader(noise(16), batch_size=BATCH)
    with attach(D, TopK(hooks=[watch]), loader=loader):
        assert len([*loader, *loader]) == 4  # passes that feed no generator step are none
        for _ in range(2):
            for z in loader:
                clear(G, D)
                LOSS.of(D(G(z))).backward()
                optimizer.step()
    assert watch.epochs == [Progress(1, 2), Progress(2, 4)]


def test_topk_epoch_ended_that_raises_where_a_pass_is_left_early():
    """The iterator is discarded there, and Python only prints what a finalizer raises."""
    G, D = networks()
    topk = TopK(hooks=[plugin("topk_epoch_ended", boom)])
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    loader = torch.utils.data.DataLoader(noise(16), batch_size=4)

    def train():
        for z, _ in zip(loader, range(2), strict=False):
            clear(G, D)
            LOSS.of(D(G(z))).backward()
            optimizer.step()

    with attach(D, topk, loader=loader):
        train()
        with pytest.raises(HookError, match="topk_epoch_ended raised ZeroDivisionError"):
            train()


# Failures are kept


def test_the_first_failure_is_kept_for_the_verdict():
    topk = TopK(gamma=0.5, hooks=[plugin("topk_select", boom)])
    assert topk.hook_errors == []
    for _ in range(2):
        scores = torch.zeros(4, requires_grad=True)
        with pytest.raises(HookError) as raised:
            topk(scores).mean().backward()
        assert len(topk.hook_errors) == 1
    assert topk.hook_errors[0] is not raised.value
    assert "ZeroDivisionError" in str(topk.hook_errors[0])
