"""lightweight-gan: the critic scores images through ``AugWrapper``, in both kinds of steps.

It returns logits and the logits of the image at 32x32, and the loss has a mean of each: the two
share one mask. Those of a generator step hang on the generator; those of the critic's own are cut
off or real. An epoch is a pass of the trainer's data loader, by its own counter of steps and by
what it fetches in each. Its checkpoints are written within a step, so that step counts as done
where a run goes on.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from topk_plugin import Adapter, CallSeam, Insert, Place, Replace, Wrap, missing

MODULE, FILE = "lightweight_gan.lightweight_gan", "lightweight_gan/lightweight_gan.py"
_loaders: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # of the endless iterators over them
_begun: WeakSet[Any] = WeakSet()  # trainers that made a step


def _critic_built(
    seam: CallSeam, wrapped: Callable[..., Any], trainer: Any, args: Any, kwargs: Any
) -> None:
    wrapped(*args, **kwargs)
    seam.keep_record(trainer.GAN.D)


def _loader_taken(
    seam: CallSeam, wrapped: Callable[..., Any], instance: Any, args: Any, kwargs: Any
) -> Any:
    endless = wrapped(*args, **kwargs)
    (_loaders[endless],) = args
    return endless


def _step(seam: CallSeam, wrapped: Callable[..., Any], trainer: Any, args: Any, kwargs: Any) -> Any:
    """One step of the critic, then one of the generator, which fetches images for one loss."""
    each, steps = trainer.gradient_accumulate_every, trainer.steps
    length = len(_loaders[trainer.loader])
    fetched = steps * each * (1 + bool(trainer.dual_contrast_loss)) + each
    if trainer not in _begun:
        _begun.add(trainer)
        seam.begin_at(fetched // length if steps else 0, steps + 1 if steps else 0)
    # the step of a pass's last batch still belongs to it
    seam.reach_epoch((fetched - 1) // length, complete=fetched % length == 0)
    return wrapped(*args, **kwargs)


def _scored(
    seam: CallSeam, wrapped: Callable[..., Any], instance: Any, args: Any, kwargs: Any
) -> Any:
    output = wrapped(*args, **kwargs)
    images = args[0] if args else kwargs["images"]
    if images.grad_fn is None or kwargs.get("detach"):
        return output  # real images, or the critic's own step
    logits, of_32x32, reconstruction = output
    # (B, d) as a map of one channel, which is a score, as (B, 1, 1, 1) is
    scores, of_32x32 = seam.gated((logits[:, None, None], of_32x32))
    return scores[:, 0, 0], of_32x32, reconstruction


ADAPTER = Adapter(
    name="lightweight_gan",
    upstream="lucidrains/lightweight-gan",
    distribution="lightweight-gan",
    versions=("1.2.1",),
    install="pip install --no-deps lightweight-gan==1.2.1 && pip install einops fire kornia retry",
    seam="call",
    epoch="a pass of the trainer's data loader",
    counter="steps, the number of its checkpoints times save_every",
    tested="the package's command and Trainer: hinge and dual contrastive loss, both heads",
    wraps=(
        Wrap(
            MODULE,
            "AugWrapper.forward",
            "(self, images, prob=0.0, types=[], detach=False, input_requires_grad=False, "
            "return_discr_input=False, **kwargs)",
            _scored,
        ),
        Wrap(MODULE, "Trainer.init_GAN", "(self)", _critic_built),
        Wrap(MODULE, "Trainer.train", "(self)", _step),
        Wrap(MODULE, "cycle", "(iterable)", _loader_taken),
    ),
    stubs={"adabelief_pytorch": {"AdaBelief": missing("adabelief_pytorch")}},
    modern=(
        *(  # where it is asserted
            Replace(file, "torch.cuda.is_available()", "True", "")
            for file in (FILE, "lightweight_gan/diff_augment_test.py")
        ),
        Insert(
            Place(FILE, "", "import"),
            "on = (lambda rank: rank) if torch.cuda.is_available() else (lambda rank: 'cpu')",
        ),
        Replace(FILE, "_.cuda(rank)", "_.to(on(rank))"),
        Replace(FILE, "_.cuda(self.rank)", "_.to(on(self.rank))"),
        Replace(FILE, "torch.device(f'cuda:{self.rank}')", "torch.device(on(self.rank))"),
    ),
)
