"""Two ranks that torch.distributed.run starts, with BatchNorm in both networks."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from by_hand import kept
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [nn.Linear(2, 16), nn.BatchNorm1d(16), nn.LeakyReLU(0.2), nn.Linear(16, 1)]
        self.net = nn.Sequential(*layers)

    def forward(self, x):
        return self.net(x)


dist.init_process_group("gloo")
rank = dist.get_rank()
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
data = torch.randn(64, 2) + 1
generator = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
G, D = (DistributedDataParallel(net, broadcast_buffers=False) for net in (generator, Critic()))
opt_g, opt_d = (torch.optim.Adam(net.parameters(), 1e-2) for net in (G, D))
sampler = DistributedSampler(data)
torch.manual_seed(1 + rank)
for epoch in range(3):
    sampler.set_epoch(epoch)
    for x in DataLoader(data, batch_size=8, sampler=sampler):
        opt_d.zero_grad()
        fake = G(torch.randn(len(x), 4)).detach()
        (F.softplus(-D(x)).mean() + F.softplus(D(fake)).mean()).backward()
        opt_d.step()
        opt_g.zero_grad()
        F.softplus(-kept(D(G(torch.randn(len(x), 4))), epoch)).mean().backward()
        opt_g.step()
torch.save([G.module.state_dict(), D.module.state_dict()], f"weights of {rank}.pt")
dist.destroy_process_group()
