"""The hook topk_scores: a plugin finds the scores in an output that nobody foresaw."""

import dataclasses

import pytest
import torch
from losses import BATCH, Critic, error, gradients, make_generator, make_topk
from plugged import LOSS, WAYS, noise, plugin, settings
from torch.utils import _pytree as pytree
from torches import compiles

from topk_plugin import attach
from topk_plugin.errors import HookError, ScoreShapeError


class Output:
    """What a critic returns that nobody foresaw."""

    def __init__(self, realness, features):
        self.realness, self.features = realness, features


@dataclasses.dataclass
class Registered(Output):
    realness: torch.Tensor
    features: torch.Tensor


register = getattr(pytree, "register_pytree_node", None) or pytree._register_pytree_node
register(
    Registered,
    lambda output: ([output.realness, output.features], None),
    lambda leaves, context: Registered(*leaves),
)

OUTPUTS = {
    "dict": lambda scores: {"a": torch.cat([scores, -scores], 1), "realness": scores},
    "tuple": lambda scores: (torch.cat([scores, -scores], 1), scores),
    "dataclass": lambda scores: Registered(scores, torch.cat([scores, -scores], 1)),
    "object": lambda scores: Output(scores, torch.cat([scores, -scores], 1)),
}


def realness(output):
    if isinstance(output, tuple):
        return output[1]
    return output["realness"] if isinstance(output, dict) else output.realness


class OddCritic(Critic):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return OUTPUTS[self.kind](super().forward(x))


def odd_step(way, kind, topk):
    torch.manual_seed(0)
    G, D = make_generator(), OddCritic(kind)
    if way == "line A":
        output = topk(D(G(noise())))
        LOSS.of(realness(output)).backward()
        assert type(output) is type(OUTPUTS[kind](torch.zeros(1, 1)))
        return gradients(G)
    with attach(D, topk):
        LOSS.of(realness(D(G(noise())))).backward()
        found = gradients(G)
        torch.optim.SGD(G.parameters(), 0.1).step()
    return found


@pytest.mark.parametrize("way", WAYS[:-1])
@pytest.mark.parametrize("kind", ["dict", "tuple", "dataclass"])
def test_topk_scores_finds_them_in_an_odd_output(way, kind):
    with pytest.raises(ScoreShapeError):
        odd_step(way, "object", make_topk(3, **settings(way)))
    mine = plugin("topk_scores", realness)
    found = odd_step(way, kind, make_topk(3, hooks=[mine], **settings(way)))
    torch.manual_seed(0)
    G, D = make_generator(), OddCritic(kind)
    scores = realness(D(G(noise()))).flatten()
    LOSS.of(scores.topk(3).values).backward()
    assert error(found, gradients(G)) < 1e-12


@pytest.mark.parametrize("way", WAYS[:-1])
def test_topk_scores_of_an_object_are_an_error_that_says_what_to_do(way):
    topk = make_topk(3, hooks=[plugin("topk_scores", realness)], **settings(way))
    message = "its hook topk_scores returned float64.8, 1. for .*registered with torch.utils._pytr"
    with pytest.raises(HookError, match=message):
        odd_step(way, "object", topk)


@pytest.mark.parametrize("way", WAYS[:-1])
@pytest.mark.parametrize("container", [list, tuple])
def test_topk_scores_of_several_heads_share_one_ranking(way, container):
    mine = plugin("topk_scores", lambda output: container([output["a"], output["b"]]))
    topk = make_topk(3, hooks=[mine], **settings(way))

    class TwoHeads(Critic):
        def forward(self, x):
            return {"a": super().forward(x), "b": x[:, :1] * 3, "c": x.sum(1)}

    found = {}
    for by_hand in (False, True):
        torch.manual_seed(0)
        G, D = make_generator(), TwoHeads()
        with attach(D, topk) if not by_hand and way != "line A" else torch.enable_grad():
            output = D(G(noise()))
            if by_hand:
                rows = (output["a"] + output["b"]).flatten().topk(3).indices
                output = {name: value[rows] for name, value in output.items()}
            elif way == "line A":
                output = topk(output)
            (LOSS.of(output["a"]) + LOSS.of(output["b"])).backward()
            found[by_hand] = gradients(G)
            torch.optim.SGD(G.parameters(), 0.1).step()
    assert error(found[False], found[True]) < 1e-12


@pytest.mark.parametrize(
    "wrong",
    [
        lambda output: output["realness"] * 2,
        lambda output: output["realness"].flatten(),
        lambda output: "realness",
        lambda output: [],
        lambda output: [output["realness"], None],
        lambda output: output["realness"] > 0,
        lambda output: {"realness": output["realness"]},
    ],
    ids=["computed", "view", "name", "empty", "none", "bool", "dict"],
)
@pytest.mark.parametrize("way", WAYS[:-1])
def test_topk_scores_wrong_results(way, wrong):
    topk = make_topk(3, hooks=[plugin("topk_scores", wrong)], **settings(way))
    message = (
        r"plugin 'hooks\[0\] Plugin': its hook topk_scores returned .* for output=\{'a': .*, "
        "expected floating tensors of that output"
    )
    with pytest.raises(HookError, match=message):
        odd_step(way, "dict", topk)


@compiles
def test_topk_scores_compiles_into_one_graph():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    topk = make_topk(3, hooks=[plugin("topk_scores", realness)])
    torch.manual_seed(0)
    G, D = make_generator(), OddCritic("tuple")
    step = torch.compile(lambda z: LOSS.of(topk(D(G(z)))[1]), fullgraph=True, backend="aot_eager")
    step(noise()).backward()
    found = gradients(G)
    assert error(found, odd_step("line A", "tuple", topk)) < 1e-12
    assert topk.report().dropped == 2 * (BATCH - 3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
