"""BigGAN-PyTorch: every generator's loss is ``losses.generator_loss``.

An epoch is a pass over the data. ``itr``, which upstream's checkpoints restore, tells how many have
ended; its ``epoch`` does not after every resume, nor with the multi-epoch sampler.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from topk_plugin import Adapter, CallSeam, Wrap, scores_argument
from topk_plugin.patches.biggan_pytorch import PATCH

_loaders: WeakKeyDictionary[CallSeam, Any] = WeakKeyDictionary()  # what feeds the training


def _named(wrapped: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    return inspect.signature(wrapped).bind(*args, **kwargs).arguments


def _loaders_made(
    seam: CallSeam, wrapped: Callable[..., Any], instance: Any, args: Any, kwargs: Any
) -> Any:
    loaders = wrapped(*args, **kwargs)
    _loaders[seam] = loaders[0]
    return loaders


def _weights_loaded(
    seam: CallSeam, wrapped: Callable[..., Any], instance: Any, args: Any, kwargs: Any
) -> Any:
    critic = _named(wrapped, args, kwargs)["D"]
    if critic is not None:  # to sample it is not needed
        seam.keep_record(critic)
    return wrapped(*args, **kwargs)


def _step_made(
    seam: CallSeam, wrapped: Callable[..., Any], instance: Any, args: Any, kwargs: Any
) -> Callable[..., Any]:
    """The function that trains on a batch; ``itr`` counts it before it is called."""
    step: Callable[..., Any] = wrapped(*args, **kwargs)
    names = _named(wrapped, args, kwargs)
    counters, config = names["state_dict"], names["config"]
    seam.keep_record(names["D"])
    loader = _loaders.get(seam)
    if loader is None:  # a script of the user's: the DataLoader that feeds it ends the epochs
        return step
    batch, delivered = loader.batch_size, len(loader) * loader.batch_size
    # the multi-epoch sampler goes on after a pass, the other loader drops what fills no batch
    size = len(loader.dataset) if config["use_multiepoch_sampler"] else delivered or 1
    seam.planned_epochs = (config["num_epochs"] - counters["epoch"]) * delivered / size
    seam.begin_at(counters["itr"] * batch // size, counters["itr"])

    @functools.wraps(step)
    def counted(*args: Any, **kwargs: Any) -> Any:
        metrics = step(*args, **kwargs)
        seam.reach_epoch(counters["itr"] * batch // size)
        return metrics

    return counted


ADAPTER = Adapter(
    name="biggan_pytorch",
    upstream="ajbrock/BigGAN-PyTorch",
    versions=(PATCH.commit,),
    seam="call",
    direction="high",
    epoch="a pass over the data",
    counter="itr in its checkpoints",
    tested="train.py: BigGAN, BigGANdeep",
    wraps=(
        Wrap("losses", "generator_loss", "(dis_fake)", scores_argument("dis_fake")),
        Wrap(
            "train_fns",
            "GAN_training_function",
            "(G, D, GD, z_, y_, ema, state_dict, config)",
            _step_made,
        ),
        Wrap(
            "utils",
            "get_data_loaders",
            "(dataset, data_root=None, augment=False, batch_size=64, num_workers=8, shuffle=True, "
            "load_in_mem=False, hdf5=False, pin_memory=True, drop_last=True, start_itr=0, "
            "num_epochs=500, use_multiepoch_sampler=False, **kwargs)",
            _loaders_made,
        ),
        Wrap(
            "utils",
            "load_weights",
            "(G, D, state_dict, weights_root, experiment_name, name_suffix=None, G_ema=None, "
            "strict=True, load_optim=True)",
            _weights_loaded,
        ),
    ),
    patch=PATCH,
)
