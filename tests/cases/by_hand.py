"""Top-k as a person would write it, in scripts that run with and without it."""

import os


def kept(scores, epoch):
    """The k best of the scores for gamma 0.5 and nu 0.25, where HAND is set; else all of them."""
    if "HAND" not in os.environ:
        return scores
    k = max(1, int(max(0.5**epoch, 0.25) * len(scores) + 1e-9))
    return scores.flatten().topk(k).values
