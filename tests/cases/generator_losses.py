"""A GAN with one of several losses, some of which couple the rows of a batch.

Arguments: the loss, the epochs, and where the weights go.
"""

import sys

import torch
import torch.nn.functional as F
from small import loader, nets


def bce(x, y):
    return F.binary_cross_entropy_with_logits(x, torch.full_like(x, y))


def softmax(real, fake):
    log_z = (torch.exp(-real).sum() + torch.exp(-fake).sum()).log()
    return real.mean() / 2 + fake.mean() / 2 + log_z


def relativistic_hinge(real, fake):
    return F.relu(1 + real - fake.mean()).mean() + F.relu(1 - fake + real.mean()).mean()


LOSSES = {
    "hinge": lambda real, fake: -fake.mean(),
    "softplus": lambda real, fake: F.softplus(-fake).mean(),
    "sum": lambda real, fake: F.softplus(-fake).sum(),
    "sum_over_rows": lambda real, fake: F.softplus(-fake).sum() / len(fake),
    "lsgan": lambda real, fake: F.mse_loss(fake, torch.ones_like(fake)),
    "wgan": lambda real, fake: real.mean() - fake.mean(),
    "bce": lambda real, fake: bce(fake, 1.0),
    "labels": lambda real, fake: F.binary_cross_entropy_with_logits(
        fake, torch.ones(len(real), 1) - 0.1
    ),
    "noisy_labels": lambda real, fake: F.mse_loss(fake, 0.8 + 0.4 * torch.rand_like(fake)),
    "views": lambda real, fake: F.softplus(-fake.view(len(real), -1).view(len(real))).mean(),
    "in_place": lambda real, fake: torch.zeros(()).add_(F.softplus(-fake).mean()) * 3,
    "paired": lambda real, fake: bce(fake - real, 1.0),
    "average": lambda real, fake: bce(real - fake.mean(), 0.0) + bce(fake - real.mean(), 1.0),
    "average_hinge": relativistic_hinge,
    "softmax": softmax,
    "std": lambda real, fake: fake.std() - fake.mean(),
    "logsumexp": lambda real, fake: torch.logsumexp(-fake, 0).sum(),
    "hidden": lambda real, fake: -fake.mean() / fake.detach().std(),
}

if __name__ == "__main__":
    name, epochs, *out = sys.argv[1:]
    torch.set_default_dtype(torch.float64)
    m, j, om, oj = nets()
    for _ in range(int(epochs)):
        for (x,) in loader:
            x = x.double()
            oj.zero_grad()
            fake = m(torch.randn(len(x), 4)).detach()
            (F.softplus(-j(x)).mean() + F.softplus(j(fake)).mean()).backward()
            oj.step()
            om.zero_grad()
            LOSSES[name](j(x).detach(), j(m(torch.randn(len(x), 4)))).backward()
            om.step()
    if out:
        torch.save([m.state_dict(), j.state_dict()], out[0])
