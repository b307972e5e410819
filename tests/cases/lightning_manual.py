"""Lightning with manual optimisation; argument: whether networks are toggled around their steps."""

import sys

import lightning
import torch
import torch.nn.functional as F
from by_hand import kept
from small import Judge, Maker
from torch.utils.data import DataLoader


class Gan(lightning.LightningModule):
    def __init__(self, toggles):
        super().__init__()
        self.automatic_optimization, self.toggles = False, toggles
        self.G, self.D = Maker(), Judge()

    def configure_optimizers(self):
        return [torch.optim.Adam(net.parameters(), 1e-2) for net in (self.G, self.D)]

    def step(self, optimizer, loss):
        if self.toggles:
            self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(loss())
        optimizer.step()
        if self.toggles:
            self.untoggle_optimizer(optimizer)

    def training_step(self, x, index):
        g, d = self.optimizers()

        def of_critic():
            fake = self.G(torch.randn(len(x), 4)).detach()
            return F.softplus(-self.D(x)).mean() + F.softplus(self.D(fake)).mean()

        def of_generator():
            scores = kept(self.D(self.G(torch.randn(len(x), 4))), self.current_epoch)
            return F.softplus(-scores).mean()

        self.step(d, of_critic)
        self.step(g, of_generator)


torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
gan = Gan(sys.argv[1] == "toggles")
trainer = lightning.Trainer(
    max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(gan, DataLoader(torch.randn(64, 8) + 1, batch_size=16, shuffle=True))
torch.save([gan.G.state_dict(), gan.D.state_dict()], "weights.pt")
