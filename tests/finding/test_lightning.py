"""Training with Lightning with nothing named, against top-k by hand in it."""

import pytest
from launched import plain_run, run
from short_scripts import SETTINGS, largest_difference, script, weights, with_gan

pytest.importorskip("lightning")

BEGIN = """
import sys
from gan import *
import lightning
from torch.nn.functional import softplus

hand = ByHand()

def keep(scores):
    return hand.keep(scores) if sys.argv[1:] else scores

def adam(network):
    return torch.optim.Adam(network.parameters(), 1e-2)
"""

TRAINER = """
class GAN(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = make_generator(), Critic()

    def configure_optimizers(self):
        return [adam(self.generator), adam(self.critic)], []

    def take(self, optimizer, loss):
        self.toggle_optimizer(optimizer)
        self.manual_backward(loss() / 2)
        if self.taken % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()
        self.untoggle_optimizer(optimizer)

    def training_step(self, x, number):
        self.taken = number + 1
        z = torch.randn(8, 3)
        of_generator, of_critic = self.optimizers()
        self.take(of_generator, lambda: softplus(-keep(self.critic(self.generator(z)))).mean())
        fake = self.generator(z).detach()
        loss = lambda: (softplus(-self.critic(x)) + softplus(self.critic(fake))).mean()
        self.take(of_critic, loss)

    def on_train_epoch_end(self):
        hand.decay()

if __name__ == "__main__":
    lightning.seed_everything(0, verbose=False)
    gan = GAN()
    off = ["logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"]
    settings = dict.fromkeys(off, False) | {"accelerator": "cpu", "max_epochs": 3, "devices": 1}
    lightning.Trainer(**settings).fit(gan, loader)
    write(gan.critic, gan.generator)
"""

FABRIC = """
fabric = lightning.Fabric(accelerator="cpu", devices=1)
D, opt_d = fabric.setup(*(lambda network: (network, adam(network)))(Critic()))
G, opt_g = fabric.setup(*(lambda network: (network, adam(network)))(make_generator()))
R, opt_r = fabric.setup(*(lambda network: (network, adam(network)))(nn.Linear(2, 1)))
loader = fabric.setup_dataloaders(loader)
for _ in range(3):
    for x in loader:
        opt_d.zero_grad(), opt_r.zero_grad()
        real, fake = (x, G(torch.randn(8, 3)).detach())
        fabric.backward((softplus(-D(real)) + softplus(D(fake))).mean())
        fabric.backward((R(x) - x.sum(1, keepdim=True)).square().mean())
        opt_d.step(), opt_r.step()
        opt_g.zero_grad()
        fake = G(torch.randn(8, 3))
        fabric.backward(softplus(-keep(D(fake))).mean() - 0.1 * R(fake).mean())
        opt_g.step()
    hand.decay()
write(D, G)
"""


def by_hand_and_found(folder, text):
    """The run of ``text`` with nothing named, checked to end as with top-k by hand."""
    script(with_gan(folder), BEGIN + text)
    ends = []
    for arguments in ([], ["by hand"]):
        assert plain_run(folder, "train.py", *arguments).status == 0
        ends.append(weights(folder))
    done = run(folder, ["run", *SETTINGS, "--", "train.py"])
    assert done.status == 0, done.err
    plain, hand = ends
    assert largest_difference(plain, hand) > 1e-6
    assert largest_difference(weights(folder), hand) < 1e-12
    return done


@pytest.mark.slow
def test_a_module_that_optimizes_by_itself_and_accumulates(tmp_path):
    done = by_hand_and_found(tmp_path, TRAINER)
    assert "ACTIVE: found critic gan:Critic, direction high, k 8 of 8" in done.err
    assert "6 generator steps gated, 40 of 96 rows dropped, 3 epochs ended" in done.err


@pytest.mark.slow
def test_a_critic_that_fabric_wrapped(tmp_path):
    done = by_hand_and_found(tmp_path, FABRIC)
    assert "ACTIVE: found critic gan:Critic, direction high, k 8 of 8" in done.err
    assert "not taken: R (Linear): output" in done.err


def test_networks_that_fabric_wrapped_are_not_of_one_kind(tmp_path):
    script(with_gan(tmp_path), BEGIN + FABRIC.replace("(x, G(", "(x, 1 + G("))
    done = run(tmp_path, ["run", *SETTINGS, "--", "train.py"])
    assert done.status == 3
    assert "NoEffectError" in done.err
    for name in ("gan:Critic", "R (Linear)"):
        assert f"{name}: output 0 (8, 1), 32 of 32 numbers pushed up" in done.err
    assert "and it is not the only one. If it is a critic: --critic gan:Critic" in done.err
