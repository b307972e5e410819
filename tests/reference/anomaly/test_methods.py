"""Table 2's two methods against a literal loop, and against the genuine code."""

import copy
import importlib.util
import os
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from anomaly_runs import trained, training, weights
from losses import assert_same, error
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from topk_plugin.reference.anomaly import Settings, Training, split_images
from topk_plugin.reference.data.named import centred
from topk_plugin.reference.networks import mnist
from topk_plugin.reference.training import stream_of


class Draws:
    """The noise of one iteration again, in the order in which the training drew it."""

    def __init__(self, run: Training, iteration: int) -> None:
        seed = stream_of(run.member, "noise", iteration).initial_seed()
        self.stream = torch.Generator().manual_seed(seed)

    def latents(self, rows: int, latent: int) -> torch.Tensor:
        return torch.empty(rows, latent).double().normal_(generator=self.stream)

    def order(self, rows: int) -> torch.Tensor:
        return torch.rand(rows, generator=self.stream).argsort()

    def mask(self, x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x).bernoulli_(0.5, generator=self.stream) * 2


def plain_adam(networks: dict[str, nn.Module], rate: float, betas: tuple[float, float]):
    return {
        name: torch.optim.Adam(network.parameters(), rate, betas, foreach=False)
        for name, network in networks.items()
    }


def fresh(run: Training, names: list[str]) -> dict[str, nn.Module]:
    return {name: copy.deepcopy(run.method.networks[name]) for name in names}


def test_meg_is_its_literal_loop():
    """Six iterations, the last three of them with k at half the batch."""
    run = training("top-k+meg")
    networks = fresh(run, ["generator", "energy", "statistics"])
    generator, energy, statistics = networks.values()
    optimizers = plain_adam(networks, 1e-4, (0.5, 0.9))
    images = run.pixels[run.train].double() / 127.5 - 1
    for iteration in range(6):
        draws, batch = Draws(run, iteration), iteration % 3
        real = images[64 * batch : 64 * batch + 64].clone().requires_grad_()
        fake = generator(draws.latents(64, 6)).detach()
        [slope] = torch.autograd.grad(energy(real).sum(), real, create_graph=True)
        loss = energy(real).mean() - energy(fake).mean() + 100 * (slope**2).mean()
        optimizers["energy"].zero_grad()
        loss.backward()
        optimizers["energy"].step()
        if iteration % 3 == 2:
            k = 64 if iteration == 2 else 32
            z = draws.latents(64, 6)
            fake = generator(z)
            lowest = energy(fake).topk(k, largest=False).values
            pairs = [statistics(fake, z), statistics(fake, z[draws.order(64)])]
            truth = torch.cat([torch.ones(64), torch.zeros(64)]).double()
            loss = lowest.mean() + cross_entropy(torch.cat(pairs), truth)
            for name in ("generator", "statistics"):
                optimizers[name].zero_grad()
            loss.backward()
            optimizers["generator"].step()
            optimizers["statistics"].step()
    start = weights(run)
    run.advance(6)
    literal = [v for n in networks.values() for v in n.state_dict().values()]
    literal = [value for value in literal if value.is_floating_point()]
    assert error(weights(run), literal) < 1e-9
    assert error(start, literal) > 1e-6
    assert error(trained("meg", until=6), literal) > 1e-6


def bigan_critic(critic: mnist.BiganCritic, x, z, draws: Draws) -> torch.Tensor:
    """Scores with dropout behind each hidden layer."""
    x = critic.first(x)
    x = critic.second(x * draws.mask(x))
    x = (x * draws.mask(x)).flatten(1)
    z = critic.latent(z)
    joint = critic.joint(torch.cat([x, z * draws.mask(z)], 1))
    return critic.score(joint * draws.mask(joint)).flatten()


def test_bigan_is_its_literal_loop():
    """Six iterations, the last three of them with k at half the batch."""
    run = training("top-k+bigan")
    names = ["generator", "encoder", "critic"]
    networks = fresh(run, names)
    generator, encoder, critic = networks.values()
    averages = [[p.detach().clone() for p in network.parameters()] for network in networks.values()]
    optimizers = plain_adam(networks, 1e-3, (0.5, 0.999))
    ones, zeros = torch.ones(50).double(), torch.zeros(50).double()
    images = run.pixels[run.train].double() / 127.5 - 1
    norms = [m for n in networks.values() for m in n.modules() if hasattr(m, "running_mean")]

    def remembered() -> list[list[torch.Tensor]]:
        return [[m.running_mean.clone(), m.running_var.clone()] for m in norms]

    def restore(kept: list[list[torch.Tensor]], network: nn.Module) -> None:
        """Running statistics of all norms but the network's own are what they were."""
        for norm, (mean, var) in zip(norms, kept, strict=True):
            if norm not in [*network.modules()]:
                norm.running_mean, norm.running_var = mean, var

    for iteration in range(6):
        draws, (epoch, batch) = Draws(run, iteration), divmod(iteration, 3)
        orders = stream_of(run.member, "order", epoch)
        first, second = (
            images[torch.randperm(164, generator=orders)[50 * batch : 50 * batch + 50]]
            for _ in range(2)
        )  # fmt: skip
        kept = remembered()
        z = draws.latents(50, 6)
        fake, code = generator(z).detach(), encoder(first).detach()
        loss = cross_entropy(bigan_critic(critic, first, code, draws), ones)
        loss = loss + cross_entropy(bigan_critic(critic, fake, z, draws), zeros)
        restore(kept, critic)
        optimizers["critic"].zero_grad()
        loss.backward()
        optimizers["critic"].step()

        kept = remembered()
        z = draws.latents(50, 6)
        fake, code = generator(z), encoder(second)
        encoded = bigan_critic(critic, second, code, draws)
        k = 50 if epoch == 0 else 25
        best = bigan_critic(critic, fake, z, draws).topk(k).values
        generator(code.detach())
        restore(kept, nn.ModuleList([generator, encoder]))
        for name in names[:2]:
            optimizers[name].zero_grad()
        cross_entropy(best, ones[:k]).backward(inputs=[*generator.parameters()], retain_graph=True)
        cross_entropy(encoded, zeros).backward(inputs=[*encoder.parameters()])
        optimizers["generator"].step()
        optimizers["encoder"].step()
        for average, network in zip(averages, networks.values(), strict=True):
            for mean, p in zip(average, network.parameters(), strict=True):
                mean.copy_(0.5 * mean + 0.5 * p.detach())

    start = weights(run)
    run.advance(6)
    literal = [v for n in networks.values() for v in n.state_dict().values()]
    literal = [value.detach() for value in literal if value.is_floating_point()]
    count = len(literal)
    assert error(weights(run)[:count], literal) < 1e-9
    assert error(start[:count], literal) > 1e-6
    assert error(trained("bigan")[:count], literal) > 1e-6
    found = [p for name in names for p in run.method.averaged[name].parameters()]
    assert error(found, [p for average in averages for p in average]) < 1e-9
    assert not any(p.requires_grad for p in found)  # nor do they hold the graphs of all steps
    # the networks' own running statistics, which are never averaged
    shared = [b for name in names for b in run.method.averaged[name].buffers()]
    own = [b for name in names for b in run.method.networks[name].buffers()]
    assert all(a is b for a, b in zip(shared, own, strict=True))


def test_anomaly_scores_of_meg():
    run = training("meg")
    x = centred(run.pixels[:9], torch.float64)
    energy = run.method.networks["energy"]
    found = run.method.anomaly_scores(x)
    torch.testing.assert_close(found["energy"], energy(x).detach())
    for image, norm in zip(x, found["input-gradient norm"], strict=True):
        slope = torch.autograd.functional.jacobian(lambda image: energy(image[None]), image)
        torch.testing.assert_close(norm, slope.square().sum().sqrt())
    assert not x.requires_grad


def test_anomaly_scores_of_bigan():
    run = training("bigan")
    run.advance(2)
    averaged = run.method.averaged
    averaged["critic"].score.bias.fill_(3.0)  # far from where its sign makes no difference
    x = centred(run.pixels[:9], torch.float64)
    code = averaged["encoder"].eval()(x)
    made = averaged["generator"].eval()(code)
    score, features = averaged["critic"].eval()(made, code)
    missed = (x - made).abs().sum(dim=(1, 2, 3))
    doubt = cross_entropy(score, torch.ones_like(score), reduction="none")
    match = (averaged["critic"](x, code)[1] - features).abs().sum(dim=1)
    found = run.method.anomaly_scores(x)
    torch.testing.assert_close(found["cross-entropy"], 0.9 * missed + 0.1 * doubt)
    torch.testing.assert_close(found["feature matching"], 0.9 * missed + 0.1 * match)
    assert not torch.allclose(found["cross-entropy"], found["feature matching"])
    assert all(network.training for network in (run.method.generator, run.method.critic))


# --- the genuine code -----------------------------------------------------------------------------

MEG = Path(
    os.environ.get("TOPK_UPSTREAMS", "/nowhere"),
    "ritheshkumar95+energy_based_generative_models",
)


@pytest.fixture
def genuine(monkeypatch):
    """Loads a file of MEG's checkout, on a machine without CUDA."""
    if not MEG.is_dir():
        pytest.skip(f"no checkout {MEG.name} in the folder TOPK_UPSTREAMS")
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.syspath_prepend(MEG)

    def load(path: str):
        spec = importlib.util.spec_from_file_location(f"meg_{Path(path).stem}", MEG / path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in [name for name in sys.modules if name.partition(".")[0] == "networks"]:
        del sys.modules[name]


def by_name(ours: nn.Module, theirs: nn.Module) -> dict[str, str]:
    """Our parameters' and buffers' names by theirs; they keep some layers in another order."""
    order = ["main.", "expand.", "classify."]
    if type(theirs).__name__ == "Generator":
        order = ["expand.", "main."]
    names = sorted(theirs.state_dict(), key=lambda name: [name.startswith(o) for o in order][::-1])
    return dict(zip(names, ours.state_dict(), strict=True))


def load_ours(ours: nn.Module, theirs: nn.Module) -> nn.Module:
    values = ours.state_dict()
    theirs.double().load_state_dict({a: values[b] for a, b in by_name(ours, theirs).items()})
    return theirs


@pytest.mark.upstream
def test_meg_is_the_genuine_one(genuine, monkeypatch):
    """Networks of the genuine size, and its own two steps, weights and noise being the same."""
    networks, functions = genuine("networks/mnist.py"), genuine("scripts/train/functions.py")
    monkeypatch.setattr(torch, "randn", lambda *shape: draws.latents(*shape))
    monkeypatch.setattr(torch, "randperm", lambda rows: draws.order(rows))
    full = Settings()
    ours = {
        "G": mnist.meg_generator(full.meg_latent, full.meg_dim),
        "E": mnist.meg_energy(full.meg_dim),
        "H": mnist.MegStatistics(full.meg_latent, full.meg_dim),
    }
    theirs = {
        "G": networks.Generator(), "E": networks.EnergyModel(), "H": networks.StatisticsNetwork()
    }  # fmt: skip
    for name, network in ours.items():
        by_name(network, theirs[name])
        count = sum(p.numel() for p in network.parameters())
        assert count == sum(p.numel() for p in theirs[name].parameters())
    for mine, genuine_one in (
        (mnist.meg_generator, networks.Generator), (mnist.MegStatistics, networks.StatisticsNetwork)
    ):  # fmt: skip
        torch.manual_seed(0)
        expected = genuine_one(z_dim=6, dim=16)
        torch.manual_seed(0)
        assert_same([*mine(6, 16).parameters()], [*expected.parameters()])

    run = training("meg")
    built = [networks.Generator(1, 6, 8), networks.EnergyModel(1, 8),
             networks.StatisticsNetwork(1, 6, 8)]  # fmt: skip
    names = ["generator", "energy", "statistics"]
    netG, netE, netH = map(load_ours, (run.method.networks[n] for n in names), built)
    adam = [torch.optim.Adam(n.parameters(), 1e-4, (0.5, 0.9)) for n in (netG, netE, netH)]
    arguments = Namespace(batch_size=64, z_dim=6, lamda=100)
    images = run.pixels[run.train].double() / 127.5 - 1
    for iteration in range(6):
        draws, batch = Draws(run, iteration), iteration % 3
        real = images[64 * batch : 64 * batch + 64]
        functions.train_energy_model(real, netG, netE, adam[1], arguments, [])
        if iteration % 3 == 2:
            functions.train_generator(netG, netE, netH, adam[0], adam[2], arguments, [])
    monkeypatch.undo()
    start = weights(run)
    run.advance(6)
    literal = []
    for name, network in zip(names, (netG, netE, netH), strict=True):
        values, ours = network.state_dict(), run.method.networks[name]
        back = {b: a for a, b in by_name(ours, network).items()}
        literal += [values[back[b]] for b in ours.state_dict()]
    literal = [value for value in literal if value.is_floating_point()]
    assert error(weights(run), literal) < 1e-9
    assert error(start, literal) > 1e-6


@pytest.mark.upstream
def test_the_original_split_is_the_genuine_one(genuine, monkeypatch):
    """Four in five of its normal test images were trained on."""
    data = genuine("data/mnist_anomaly.py")
    count = 2000
    position = np.repeat(np.arange(count, dtype=np.float64)[:, None], 784, axis=1)
    labels = (np.arange(count) * 7 % 10).astype(np.uint8)
    parts = {"train": slice(0, 1000), "test": slice(1000, 1500), "valid": slice(1500, count)}
    arrays = {f"x_{name}": position[rows] for name, rows in parts.items()}
    arrays |= {f"y_{name}": labels[rows] for name, rows in parts.items()}
    monkeypatch.setattr(np, "load", lambda path: arrays)
    train, _ = data.get_train(4)
    test, anomalous = data.get_test(4)
    train, test = (x[:, 0, 0, 0].astype(int).tolist() for x in (train, test))
    found = split_images(torch.from_numpy(labels), 4, "original")
    assert found.train.tolist() == train
    assert sorted(found.test.tolist()) == sorted(test)
    assert found.anomalous.sum() == anomalous.sum()
    normal = np.array(test)[np.array(anomalous) == 0]
    assert 0.75 < np.isin(normal, train).mean() < 0.85
