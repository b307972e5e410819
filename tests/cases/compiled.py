"""A critic that torch.compile gets hold of, in one of many ways: ``compiled.py WAY BACKEND``."""

import copy
import sys

import torch
import torch.nn.functional as F
from small import loader, nets

way, backend = sys.argv[1], sys.argv[2]
whole = {"fullgraph": True, "backend": backend}
m, j, om, oj = nets()
judge = j


def fake(x):
    return m(torch.randn(len(x), 4))


def critic_loss(x, z):
    return F.softplus(-judge(x)).mean() + F.softplus(judge(z)).mean()


def generator_loss(scores):
    return F.softplus(-scores).mean()


def generator_step(z):
    return generator_loss(judge(m(z)))


if way == "wrapper":
    judge = torch.compile(j, **whole)
elif way == "in place":
    j.compile(**whole)
elif way == "both":
    judge = torch.compile(j, **whole)
    generator_step = lambda z: generator_loss(j(m(z)))  # noqa: E731
elif way == "twice":
    j.compile(**whole)
    judge = torch.compile(j, **whole)
elif way == "loss":
    generator_loss = torch.compile(generator_loss, **whole)
elif way == "copies":
    ema = copy.deepcopy(j)
    in_place, of_ema = copy.deepcopy(j), torch.compile(ema, **whole)
    in_place.compile(**whole)
    judge = torch.compile(j, **whole)
elif way == "critic step":
    critic_loss = torch.compile(critic_loss, **whole)
elif way == "evaluation":
    evaluate = torch.no_grad()(torch.compile(lambda x: judge(m(x)).mean(), **whole))
elif way == "split step":
    generator_step = torch.compile(generator_step, backend=backend)
elif way == "whole step":
    generator_step = torch.compile(generator_step, **whole)
elif way == "forward":
    j.forward = torch.compile(j.forward, **whole)
elif way == "optimizer":
    om.step, oj.step = (torch.compile(o.step, backend=backend) for o in (om, oj))
else:
    assert way == "plain"

for _ in range(3):
    for (x,) in loader:
        oj.zero_grad()
        critic_loss(x, fake(x).detach()).backward()
        oj.step()
        om.zero_grad()
        generator_step(torch.randn(len(x), 4)).backward()
        om.step()
        if way == "copies":
            for copied in (of_ema, in_place):
                z = m(torch.ones(8, 4))
                assert torch.allclose(copied(z), ema(z))
                copied(z.detach()).mean().backward()
        if way == "evaluation":
            evaluate(torch.ones(8, 4))
torch.save([m.state_dict(), j.state_dict()], "weights.pt")
print("trained")
