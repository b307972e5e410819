"""Two warm-up passes on a pixel loss, without the critic, then two adversarial ones."""

import torch
from small import loader, nets, step

maker, judge, of_maker, of_judge = nets()
for epoch in range(4):
    for (x,) in loader:
        if epoch < 2:
            of_maker.zero_grad()
            (maker(torch.randn(len(x), 4)) - x).abs().mean().backward()
            of_maker.step()
        else:
            step(x, maker, judge, of_maker, of_judge)
print("2 adversarial passes trained")
