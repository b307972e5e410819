"""FID: the Frechet distance of two sets of images, each seen as a Gaussian of its features.

Heusel et al. (2017); features, resizing and statistics are those of pytorch-fid. Where there are no
weights of Inception, a small classifier of the data set itself gives the features. That distance
has a name of its own, since it cannot be compared with any FID.
"""

from topk_plugin.reference.fid.cache import cache_folder
from topk_plugin.reference.fid.classifier_features import Labelled, classifier
from topk_plugin.reference.fid.features import Features, to_pixels
from topk_plugin.reference.fid.frechet import Statistics, frechet_distance
from topk_plugin.reference.fid.inception_features import find_inception, inception
from topk_plugin.reference.fid.scores import (
    Pictures,
    Score,
    generated_statistics,
    reference_statistics,
    score,
)

__all__ = [
    "Features",
    "Labelled",
    "Pictures",
    "Score",
    "Statistics",
    "cache_folder",
    "classifier",
    "find_inception",
    "frechet_distance",
    "generated_statistics",
    "inception",
    "reference_statistics",
    "score",
    "to_pixels",
]
