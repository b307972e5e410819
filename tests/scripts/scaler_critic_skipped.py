"""Loss scaling on the CPU; one generator step overflows, and the scaler skips it."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader

torch.manual_seed(11)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def forward(self, x):
        return self.main(x)


dataset = torch.randn(64, 2).abs()
loader = DataLoader(dataset, batch_size=16, shuffle=True)
G = nn.Sequential(nn.Linear(4, 32), nn.LeakyReLU(0.2), nn.Linear(32, 2))
D = Critic()
optimizer_G = torch.optim.Adam(G.parameters(), lr=2e-3, betas=(0.5, 0.999))
optimizer_D = torch.optim.Adam(D.parameters(), lr=2e-3, betas=(0.5, 0.999))
criterion = nn.BCEWithLogitsLoss()
scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=10)
# hand: f = 1.0

iteration = 0
for _ in range(5):
    for x in loader:
        optimizer_D.zero_grad()
        fake = G(torch.randn(len(x), 4))
        real_out, fake_out = D(x), D(G(torch.randn(len(x), 4)))
        loss = criterion(real_out, torch.ones_like(real_out))
        loss = loss + criterion(fake_out, torch.zeros_like(fake_out))
        scaler.scale(loss).backward()
        if iteration == 3:
            D.main[0].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer_D)

        optimizer_G.zero_grad()
        out = D(fake)
        # hand: out = out.flatten().topk(max(1, int(f * len(out) + 1e-9))).values
        scaler.scale(criterion(out, torch.ones_like(out))).backward()
        if iteration == 9:
            G[0].weight.grad[0, 0] = float("inf")  # stands for an overflow
        scaler.step(optimizer_G)
        scaler.update()
        iteration += 1
    # hand: f = max(f * 0.8, 0.5)

torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
