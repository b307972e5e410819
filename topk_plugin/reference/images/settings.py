"""Settings of the experiments on images, Tables 3 to 5."""

from __future__ import annotations

from dataclasses import dataclass

from topk_plugin.errors import ConfigError
from topk_plugin.reference.data.batches import FOLDER
from topk_plugin.reference.data.readers import DATASETS
from topk_plugin.reference.fid.inception_features import PUBLISHED
from topk_plugin.reference.runs import ranks
from topk_plugin.reference.settings import Rule, check, is_number, is_whole

KNOWN = (*DATASETS, FOLDER)
FEATURES = ("inception", "classifier")


@dataclass(frozen=True)
class Settings:
    """One for all of a run; what belongs to a model or an arm is in ``experiments``.

    Raises:
        ConfigError: a value of the wrong type or out of its range.
    """

    dataset: str = "cifar10"  # or "folder", "digits", "mnist", "fashion-mnist"
    data: str | None = None
    download: bool = False
    channels: int | None = None  # 1 or 3; None: as the images are
    batch: int = 128  # over all ranks
    accumulation: int = 1  # parts of a rank's batch that are computed after each other
    gamma: float = 0.99
    nu: float = 0.5
    decay_every: int | None = None  # generator steps between decays of k; None: an epoch
    # open
    iterations: int | None = None  # generator steps; None: those of the model
    width: float = 1.0  # of all layers, relative to the model's
    samples: int = 50_000  # whose statistics are compared with those of all training images
    features: str = "inception"  # or "classifier", which is trained on the data set
    inception: str | None = None  # path of its weights; None: torch hub's cache
    inception_sha256: str = PUBLISHED  # how that file's digest begins
    average: float | None = None  # decay of averaged weights, 0 for none; None: the model's
    bf16: bool = False  # mixed precision
    compile: bool = False
    graphs: bool = False  # CUDA graphs
    decoders: int | None = None  # processes that decode a folder's images; None: one a core
    measure_every: int = 1_000  # generator steps
    score_every: int = 10_000

    def __post_init__(self) -> None:
        check(self, RULES)
        parts = self.accumulation * ranks.launched()
        if self.batch % parts:
            raise ConfigError(
                f"batch: found {self.batch}, expected a multiple of {parts}: accumulation "
                f"{self.accumulation} on {ranks.launched()} ranks"
            )
        if self.score_every % self.measure_every:
            raise ConfigError(
                f"score_every: found {self.score_every}, expected a multiple of measure_every, "
                f"{self.measure_every}"
            )


RULES: list[Rule] = [
    (["dataset"], lambda v: v in KNOWN, f"one of {', '.join(KNOWN)}"),
    (["inception_sha256"], lambda v: isinstance(v, str), "hexadecimal digits"),
    (["data", "inception"], lambda v: v is None or isinstance(v, str), "a path"),
    (
        ["download", "bf16", "compile", "graphs"],
        lambda v: isinstance(v, bool), "true or false",
    ),
    (["channels"], lambda v: v in (None, 1, 3), "1, 3 or null"),
    (
        ["accumulation", "measure_every", "score_every"],
        lambda v: is_whole(v, 1), "a whole number, at least 1",
    ),
    (["batch", "samples"], lambda v: is_whole(v, 2), "a whole number, at least 2"),
    (
        ["iterations", "decoders", "decay_every"],
        lambda v: v is None or is_whole(v, 1), "a whole number, at least 1, or null",
    ),
    (["gamma", "nu", "width"], lambda v: is_number(v) and 0 < v <= 1, "a number in (0, 1]"),
    (
        ["average"],
        lambda v: v is None or (is_number(v) and 0 <= v < 1), "a number in [0, 1), or null",
    ),
    (["features"], lambda v: v in FEATURES, f"one of {', '.join(FEATURES)}"),
]  # fmt: skip
