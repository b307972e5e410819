"""What tests of the image trainer share with the processes that they start."""

import dataclasses
import json
import os

import pytest
import torch
from torch import nn

from topk_plugin.reference import images, ranks, runs
from topk_plugin.reference.experiments import MODELS
from topk_plugin.reference.images import Settings, Training
from topk_plugin.reference.runs import Job, Member, train

CPU = torch.device("cpu")
TINY = Settings(
    dataset="digits", features="classifier", width=1 / 16, batch=8, gamma=0.8, iterations=6,
    samples=60, measure_every=2, score_every=6,
)  # fmt: skip
SIZE = 16
EPOCH = 2  # batches, in these tests


def changed(settings: Settings = TINY, **changes) -> Settings:
    return Settings(**{**vars(settings), **changes})


def attend_to_small_images(patch) -> None:
    patch.setitem(MODELS, "sagan", dataclasses.replace(MODELS["sagan"], attention=8))


def shorten_epochs(patch) -> None:
    """So that k decays at once."""

    def of_few(*args, **options):
        found = source(*args, **options)
        found.length = EPOCH
        return found

    source = images.source
    patch.setattr(images, "source", of_few)


def without_norms(patch):
    """BatchNorm ties the rows of a batch together: without it, how it is divided cannot matter."""

    def pair(*args):
        made = networks(*args)
        for network in made:
            for module in [*network.modules()]:
                for name, child in module.named_children():
                    if isinstance(child, nn.BatchNorm2d):
                        setattr(module, name, nn.Identity())
        return made

    networks = images.networks
    patch.setattr(images, "networks", pair)


class Killed(BaseException):
    """What ends a process at once, as far as a test can have it."""


def of_two(rank: int, folder, port: int) -> None:
    """One of two ranks: top-k undisturbed, the same killed and resumed, and plain without norms."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        attend_to_small_images(patch)
        shorten_epochs(patch)
        settings = changed(iterations=4)
        with ranks.group(CPU):

            def job(name: str, arm: str = "top-k+sngan") -> Job:
                return Job(folder / name, "images", settings, [Member(SIZE, arm, 0)], "cpu")

            told: list[int] = []
            train(job("undisturbed"), lambda done, total: told.append(done))
            (folder / f"told-{rank}").write_text(json.dumps(told))
            step = Training._generator_step
            patch.setattr(runs, "SAVE_SECONDS", 0)

            def killed(self, *drawn) -> None:
                if self.iteration == 3:  # between two measurements
                    raise Killed
                step(self, *drawn)

            patch.setattr(Training, "_generator_step", killed)
            with pytest.raises(Killed):
                train(job("resumed"))
            patch.setattr(Training, "_generator_step", step)
            train(job("resumed"))
            without_norms(patch)
            train(job("plain", "sngan"))
