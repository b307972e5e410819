"""stylegan2-pytorch: the critic scores images through ``AugWrapper``, in both kinds of steps.

Those of a generator step hang on the generator; those of the critic's own are cut off or real. An
epoch is a pass of the trainer's data loader, by its own counter of steps and by what it fetches in
each. Its checkpoints are written within a step, so that step counts as done where a run goes on.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from topk_plugin import Adapter, CallSeam, Insert, Place, Replace, Wrap, missing
from topk_plugin.errors import ConfigError, DirectionUnknown

NAME, MODULE = "stylegan2_pytorch", "stylegan2_pytorch.stylegan2_pytorch"
FILE = "stylegan2_pytorch/stylegan2_pytorch.py"
Call = Callable[..., Any]
_loaders: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # of the endless iterators over them
_begun: WeakSet[Any] = WeakSet()  # trainers that made a step


def _critic_built(seam: CallSeam, wrapped: Call, trainer: Any, args: Any, kwargs: Any) -> None:
    wrapped(*args, **kwargs)
    seam.keep_record(trainer.GAN.D)


def _loader_taken(seam: CallSeam, wrapped: Call, instance: Any, args: Any, kwargs: Any) -> Any:
    endless = wrapped(*args, **kwargs)
    (_loaders[endless],) = args
    return endless


def _step(seam: CallSeam, wrapped: Call, trainer: Any, args: Any, kwargs: Any) -> Any:
    """One step of the critic, then one of the generator."""
    _require_ours(seam, trainer)
    each, steps = trainer.gradient_accumulate_every, trainer.steps
    before = each * (1 + bool(trainer.cl_reg))  # batches of a step before the generator's turn
    a_step = before + each * bool(trainer.dual_contrast_loss)
    length = len(_loaders[trainer.loader])
    fetched = steps * a_step + before
    if trainer not in _begun:
        _begun.add(trainer)
        seam.begin_at(fetched // length if steps else 0, steps + 1 if steps else 0)
    # the step of a pass's last batch still belongs to it
    seam.reach_epoch((fetched - 1) // length, complete=fetched % length == 0)
    return wrapped(*args, **kwargs)


def _require_ours(seam: CallSeam, trainer: Any) -> None:
    if trainer.top_k_training:
        raise ConfigError(
            f"adapter {NAME}: found top_k_training, stylegan2-pytorch's own top-k, which would cut "
            "k a second time; expected one of the two. Leave --top_k_training out, or run it with "
            "its own: topk run --no-enabled"
        )
    if trainer.dual_contrast_loss and seam.topk.config.direction == "auto":
        raise DirectionUnknown(
            f"adapter {NAME}: found dual_contrast_loss, to which stylegan2-pytorch 1.9.0 gives "
            "fakes and reals in the same order in both steps, so that its generator lowers the "
            "scores that its critic raises for reals; expected a loss that asks for what the "
            "critic takes for real. Train with its hinge loss, or say --direction high to keep the "
            "samples that the critic takes for real"
        )


def _scored(seam: CallSeam, wrapped: Call, instance: Any, args: Any, kwargs: Any) -> Any:
    output = wrapped(*args, **kwargs)
    images = args[0] if args else kwargs["images"]
    if images.grad_fn is None or kwargs.get("detach"):
        return output  # real images, or the critic's own step
    scores, of_quantizer = output
    return seam.gated(scores.reshape(-1)).reshape(scores.shape), of_quantizer  # () of a batch of 1


ADAPTER = Adapter(
    name=NAME,
    upstream="lucidrains/stylegan2-pytorch",
    distribution="stylegan2-pytorch",
    versions=("1.9.0",),
    install="pip install --no-deps stylegan2-pytorch==1.9.0 && "
    "pip install einops fire kornia retry",
    seam="call",
    direction="low",
    epoch="a pass of the trainer's data loader",
    counter="steps, the number of its checkpoints times save_every",
    tested="the package's command and Trainer: hinge loss, accumulated gradients, augmentation",
    wraps=(
        Wrap(
            MODULE,
            "AugWrapper.forward",
            "(self, images, prob=0.0, types=[], detach=False, return_aug_images=False, "
            "input_requires_grad=False)",
            _scored,
        ),
        Wrap(MODULE, "Trainer.init_GAN", "(self)", _critic_built),
        Wrap(MODULE, "Trainer.train", "(self)", _step),
        Wrap(MODULE, "cycle", "(iterable)", _loader_taken),
        Wrap(MODULE, "dual_contrastive_loss", "(fake_logits, real_logits)"),
    ),
    stubs={
        "aim": {},  # for its log
        "vector_quantize_pytorch": {"VectorQuantize": missing("vector_quantize_pytorch")},
    },
    modern=(
        Replace(FILE, "torch.cuda.is_available()", "True", ""),  # asserted
        Insert(
            Place(FILE, "", "import"),
            "on = (lambda rank: rank) if torch.cuda.is_available() else (lambda rank: 'cpu')",
        ),
        *(
            Replace(FILE, f"_.cuda({rank})", f"_.to(on({rank or 0}))")
            for rank in ("", "device", "rank", "self.rank")
        ),
    ),
)
