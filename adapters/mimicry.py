"""torch-mimicry: every generator's loss goes through ``compute_gan_loss(output)``.

Its trainer counts steps only. An epoch is a pass of its data loader, and every step fetches
``n_dis`` batches: the step of a checkpoint tells how many passes had ended, also in the middle of
one. In a loop of one's own with these networks the DataLoader that feeds it ends the epochs.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from topk_plugin import Adapter, CallSeam, Wrap, scores_argument

LOSS = "compute_gan_loss"
_gate_output = scores_argument("output")
_fetched: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # batches a trainer fetched so far


def _generator_built(
    seam: CallSeam, wrapped: Callable[..., Any], generator: Any, args: Any, kwargs: Any
) -> None:
    """A generator of the user's may override the loss: every override is a call site's."""
    wrapped(*args, **kwargs)
    seam.wrap_overrides(type(generator), LOSS, _gate_output)


def _critic_built(
    seam: CallSeam, wrapped: Callable[..., Any], critic: Any, args: Any, kwargs: Any
) -> None:
    wrapped(*args, **kwargs)
    seam.keep_record(critic)


def _trainer_built(
    seam: CallSeam, wrapped: Callable[..., Any], trainer: Any, args: Any, kwargs: Any
) -> None:
    wrapped(*args, **kwargs)
    seam.wrap_overrides(type(trainer), "_fetch_data", _batch_fetched)
    seam.planned_epochs = trainer.num_steps * trainer.n_dis / len(trainer.dataloader)


def _restored(
    seam: CallSeam, wrapped: Callable[..., Any], trainer: Any, args: Any, kwargs: Any
) -> int:
    """Training begins at a step: 0, or that of the trainer's checkpoint."""
    step = wrapped(*args, **kwargs)
    _fetched[trainer] = step * trainer.n_dis
    seam.begin_at(_fetched[trainer] // len(trainer.dataloader), step)
    return step


def _batch_fetched(
    seam: CallSeam, wrapped: Callable[..., Any], trainer: Any, args: Any, kwargs: Any
) -> Any:
    before = _fetched.get(trainer, 0)
    result = wrapped(*args, **kwargs)
    if _fetched.get(trainer, 0) == before:  # else an override called the original, which counted
        _fetched[trainer] = before + 1
    length = len(trainer.dataloader)
    # the step of a pass's last batch still belongs to it
    seam.reach_epoch(before // length, complete=(before + 1) % length == 0)
    return result


_GAN = "torch_mimicry.nets.gan.gan"
_TRAINERS = {
    "torch_mimicry.training.trainer": (
        "Trainer",
        "(self, netD, netG, optD, optG, dataloader, num_steps, log_dir='./log', n_dis=1, "
        "lr_decay=None, device=None, netG_ckpt_file=None, netD_ckpt_file=None, print_steps=1, "
        "vis_steps=500, log_steps=50, save_steps=5000, flush_secs=30, amp=False)",
    ),
    "torch_mimicry.training.distributed_trainer": (
        "DistributedTrainer",
        "(self, netD, netG, optD, optG, dataloader, num_steps, n_gpus, log_dir='./log', n_dis=1, "
        "netG_ckpt_file=None, netD_ckpt_file=None, lr_decay=None, device=None, **kwargs)",
    ),
}

ADAPTER = Adapter(
    name="mimicry",
    upstream="kwotsin/mimicry",
    distribution="torch-mimicry",
    versions=("0.1.16",),
    install="pip install --no-deps torch-mimicry==0.1.16",
    seam="call",
    direction="high",
    epoch="a pass of the trainer's data loader; n_dis batches a generator step",
    counter="global_step in its checkpoints",
    tested="the package's Trainer: SN-GAN, SAGAN, WGAN-GP, SSGAN, InfoMax-GAN, cGAN-PD, DCGAN",
    wraps=(
        Wrap(
            _GAN,
            "BaseGenerator.__init__",
            "(self, nz, ngf, bottom_width, loss_type, **kwargs)",
            _generator_built,
        ),
        Wrap(_GAN, f"BaseGenerator.{LOSS}", "(self, output)", _gate_output),
        Wrap(_GAN, "BaseDiscriminator.__init__", "(self, ndf, loss_type, **kwargs)", _critic_built),
        *(
            Wrap(module, f"{trainer}.{name}", signature, wrapper)
            for module, (trainer, init) in _TRAINERS.items()
            for name, signature, wrapper in (
                ("__init__", init, _trainer_built),
                ("_restore_models_and_step", "(self)", _restored),
                ("_fetch_data", "(self, iter_dataloader)", _batch_fetched),
            )
        ),
    ),
    stubs={
        "torch._six": {"PY3": True, "string_classes": (str,)},  # for downloads of ImageNet
        "tensorflow": {},  # for its metrics
    },
)
