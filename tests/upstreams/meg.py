# needs: torchvision sklearn yaml; genuine: matplotlib
"""Trains with a script of MEG, on digits: anomaly_mnist.py for three epochs, or another one."""

import argparse
import importlib.machinery
import random
import sys
import types
from pathlib import Path

import numpy as np
import torch
import torchvision
from topk_drive import digits, execute, k_of, keep, train_other
from torch.utils.data import TensorDataset

SMALL = ("--save_path", "logs", "--z_dim", "3", "--batch_size", "4")
EPOCHS, ITERATIONS = ("--epochs", "3"), ("--iters", "9", "--dim", "8")
SCRIPTS = {
    "anomaly_mnist": (*EPOCHS, "--label", "1", "--dim", "8", "--energy_model_iters", "2"),
    "anomaly_kdd": EPOCHS,
    "ebm_toy": (*ITERATIONS, "--dataset", "swissroll", "--energy_model_iters", "2"),
    "ebm_mnist": (*ITERATIONS, "--n_stack", "1", "--energy_model_iters", "2"),
    "ebm_cifar": (*ITERATIONS, "--energy_model_iters", "1"),
    "wgan-gp_mnist": (*ITERATIONS, "--n_stack", "1", "--critic_iters", "2"),
    "wgan-gp_cifar": (*ITERATIONS, "--critic_iters", "1", "--batch_size", "64"),
}
EVERY = 4  # generator steps, for those that have no epochs
PASS = 2  # batches


def module(name, **contents):
    """One that the script finds in place of its own."""
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(sys.modules[name]).update(contents)


class Ignored:
    """What writes for TensorBoard, or measures images with a network that is not here."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        return lambda *args, **kwargs: (0.0, 0.0)


class Images(TensorDataset):
    """Digits for one loader; how often it took one of them."""

    taken = 0

    def __getitem__(self, index):
        Images.taken += 1
        return super().__getitem__(index)


def endless(batch_size, n_stack=1):
    images, _ = digits(40, 28)
    while True:
        yield images[torch.randint(len(images), (batch_size,)), :1]


def prepare():
    """Small data; double precision where the scripts ask for single."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float, from_numpy = torch.Tensor.double, torch.from_numpy
    torch.from_numpy = lambda array: from_numpy(array.astype(np.float64))
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    module("tensorboardX", SummaryWriter=Ignored)
    module("evals", ModeCollapseEval=Ignored, tf_inception_score=Ignored().score)
    module("data.mnist", inf_train_gen=endless)
    rows = np.random.rand(20, 121), np.arange(20) % 2
    module("data.kdd", get_train=lambda: rows, get_test=lambda: rows)
    torchvision.datasets.CIFAR10 = lambda *a, **kw: Images(*digits(64 * PASS, 32))
    images, labels = digits(40, 28, 1)
    x, y = (images.flatten(1).numpy() + 1) / 2, labels.numpy()
    Path("../data").mkdir(exist_ok=True)
    parts = {"train": slice(30), "test": slice(30, 35), "valid": slice(35, None)}
    named = {f"{name}_{part}": of[rows] for part, rows in parts.items() for name, of in
             (("x", x), ("y", y))}  # fmt: skip
    np.savez("../data/mnist.npz", **named)


def epochs_ended(script, steps):
    """How many had when a generator step begins, of which ``steps`` came before it."""
    if script.startswith("anomaly"):
        return vars(sys.modules["__main__"])["epoch"]
    if script.endswith("cifar"):  # a pass is over when the next batch is asked for
        passes = max(0, Images.taken // 64 - 1) // PASS
        Images.before = passes if not steps else Images.before
        return passes - Images.before
    return steps // EVERY


def by_hand(script, worst):
    """The k lowest energies, or the k highest scores, of each generator step; or the others."""
    import functions

    steps = []

    def filtered(name, largest):
        train = getattr(functions, name)

        def step(netG, critic, *rest):
            forward = critic.forward
            [args] = [one for one in rest if isinstance(one, argparse.Namespace)]
            k = k_of(epochs_ended(script, len(steps)), args.batch_size)
            critic.forward = lambda x: forward(x).topk(k, dim=0, largest=largest).values
            train(netG, critic, *rest)
            del critic.forward
            steps.append(k)

        setattr(functions, name, step)

    filtered("train_generator", largest=worst)
    filtered("train_wgan_generator", largest=not worst)


def probe(script):
    """Writes probe.pt: what fresh networks give their samplers, scores and generator step."""
    import functions
    import sampler

    torch.manual_seed(1)
    netG, netE, netH = (type(script[name])(z_dim=3, dim=8) if name != "netE" else
                        type(script[name])(dim=8) for name in ("netG", "netE", "netH"))  # fmt: skip
    for name, fresh in {"netG": netG, "netE": netE, "netH": netH}.items():
        script[name].load_state_dict(fresh.state_dict())  # new networks are another training
        script[name].zero_grad()
    netG, netE, netH = script["netG"], script["netE"], script["netH"]
    args = argparse.Namespace(batch_size=4, z_dim=3, mcmc_iters=3, alpha=0.01, temp=0.5)
    found = {}
    for name in ("MALA_sampler", "MALA_corrected_sampler"):
        z = getattr(sampler, name)(netG, netE, args)
        [gradient] = torch.autograd.grad(netE(netG(z.requires_grad_())).sum(), z)
        found[name] = [z.detach(), gradient]
    found["left"] = [p.grad for net in (netG, netE, netH) for p in net.parameters()]
    scores = []
    script["compute_scores"] = lambda truth, score: (scores.append(score.copy()), 0.0) and (0, None)
    script["do_eval"](netE, Ignored(), 0)
    found["scores"] = [torch.tensor(score) for score in scores]
    nets = {"netG": netG, "netE": netE, "netH": netH}
    still = [torch.optim.SGD(net.parameters(), 0.0) for net in (netG, netH)]
    functions.train_generator(*nets.values(), *still, args, [])
    for name, net in nets.items():
        found[name] = [p.grad for p in net.parameters()]
    torch.save(found, "probe.pt")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--script", default="anomaly_mnist")
    parser.add_argument("--hand", action="store_true")
    parser.add_argument("--worst", action="store_true", help="by hand, the other end of the scores")
    parser.add_argument("--other", action="store_true")
    parser.add_argument("--probe", action="store_true")
    own, rest = parser.parse_known_args()
    prepare()
    sys.path += ["scripts/train", "scripts", "."]
    if own.other:
        import functions  # noqa: F401

        train_other()
        return
    if own.hand:
        by_hand(own.script, own.worst)
    arguments = (*SMALL, *SCRIPTS[own.script], *rest)
    script = vars(execute(f"scripts/train/{own.script}.py", *arguments))
    keep(*(script[name] for name in ("netG", "netE", "netD", "netH") if name in script))
    if own.probe:
        probe(script)


if __name__ == "__main__":
    main()
