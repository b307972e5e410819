"""torchgan: a generator's loss is an object whose ``forward`` takes the critic's scores of fakes.

Those that take more (an auxiliary classifier's labels, features to match, embeddings) take no
scores, and are left alone. The trainer writes a checkpoint at the end of each epoch, and its
counter goes on from there. Only what it saves after the end says epoch 0: top-k's record knows.
"""

import inspect
from collections.abc import Callable
from typing import Any

from topk_plugin import Adapter, Argument, CallSeam, Replace, Wrap, scores_argument

LOSS, TRAINER = "torchgan.losses.loss", "torchgan.trainer.base_trainer"
_gate_scores = scores_argument("dgz")


def _loss_built(
    seam: CallSeam, wrapped: Callable[..., Any], loss: Any, args: Any, kwargs: Any
) -> None:
    """A loss of the user's may override another's: every override is a call site's."""
    wrapped(*args, **kwargs)
    for owner in type(loss).__mro__:
        forward = vars(owner).get("forward")
        if owner.__module__.startswith("torch.nn.") or forward is None:
            continue
        arguments = list(inspect.signature(forward).parameters)[1:]
        if len(arguments) == 1 and not seam.log.holds(owner, "forward"):
            seam.wrap(owner, "forward", _gate_scores)


def _trainer_built(
    seam: CallSeam, wrapped: Callable[..., Any], trainer: Any, args: Any, kwargs: Any
) -> None:
    wrapped(*args, **kwargs)
    for model in (getattr(trainer, name) for name in trainer.model_names):
        kinds = type(getattr(model, "module", model)).__mro__  # module: of a DataParallel
        if all(kind.__name__ != "Generator" for kind in kinds):
            seam.keep_record(model)
    seam.planned_epochs = trainer.epochs


def _trained(
    seam: CallSeam, wrapped: Callable[..., Any], trainer: Any, args: Any, kwargs: Any
) -> Any:
    seam.begin_at(trainer.start_epoch, trainer.loss_information["generator_iters"])
    seam.reach_epoch(trainer.start_epoch)
    return wrapped(*args, **kwargs)


def _saved(
    seam: CallSeam, wrapped: Callable[..., Any], trainer: Any, args: Any, kwargs: Any
) -> Any:
    """An epoch ended, which the checkpoint counts."""
    seam.reach_epoch((args[0] if args else kwargs["epoch"]) + 1)
    return wrapped(*args, **kwargs)


ADAPTER = Adapter(
    name="torchgan",
    upstream="torchgan/torchgan",
    distribution="torchgan",
    versions=("0.1.0",),
    install="pip install --no-deps torchgan==0.1.0",
    seam="call",
    epoch="one of the trainer's, a pass of its data loader",
    counter="epoch in its checkpoints",
    tested="the package's Trainer: minimax, least squares, Wasserstein, EBGAN, ACGAN's classifier",
    wraps=(
        Wrap(
            LOSS,
            "GeneratorLoss.__init__",
            "(self, reduction='mean', override_train_ops=None)",
            _loss_built,
        ),
        Wrap(TRAINER, "BaseTrainer._store_loss_maps", "(self)", _trainer_built),
        Wrap(TRAINER, "BaseTrainer.train", "(self, data_loader, **kwargs)", _trained),
        Wrap(TRAINER, "BaseTrainer.save_model", "(self, epoch, save_items=None)", _saved),
    ),
    modern=(
        Argument("torchgan/trainer/base_trainer.py", "torch.load", "weights_only=False"),
        Replace(
            "torchgan/logging/visualize.py",
            "torchvision.utils.make_grid",
            "(lambda images, range, **given: "
            "torchvision.utils.make_grid(images, value_range=range, **given))",
        ),
    ),
)
