"""Trains in a folder that hydra makes, and writes its weights there."""

import hydra
import torch
import torch.nn.functional as F
from by_hand import kept
from torch.utils.data import DataLoader

from .nets import Critic, generator


@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(config):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    loader = DataLoader(torch.randn(64, 2) + 1, batch_size=16, shuffle=True)
    G, D = generator(), Critic()
    opt_g, opt_d = (torch.optim.Adam(net.parameters(), config.rate) for net in (G, D))
    for epoch in range(config.epochs):
        for x in loader:
            opt_d.zero_grad()
            (F.softplus(-D(x)) + F.softplus(D(G(torch.randn(16, 4)).detach()))).mean().backward()
            opt_d.step()
            opt_g.zero_grad()
            F.softplus(-kept(D(G(torch.randn(16, 4))), epoch)).mean().backward()
            opt_g.step()
    torch.save([G.state_dict(), D.state_dict()], "weights.pt")


if __name__ == "__main__":
    main()
