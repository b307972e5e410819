"""Every error a user can meet. A message says what was found, what was expected and what to do."""

import difflib
from collections.abc import Iterable


class TopKError(Exception):
    """Base of all errors that topk_plugin raises on purpose."""


class ConfigError(TopKError):
    """A setting is unknown, of the wrong type, or out of its range."""


class SeamNotFound(TopKError):
    """The place for top-k (a class, a function) does not exist or was never used."""


class UnsupportedUpstream(TopKError):
    """An upstream repository differs from the one that an adapter was written against."""


class NoEffectError(TopKError):
    """Training ran, yet no generator step passed through top-k."""


class ScoreShapeError(TopKError):
    """The critic's output does not hold one score per sample."""


class DirectionUnknown(TopKError):
    """The loss does not say which end of the scores is more realistic."""


class GeneratorStepUnknown(TopKError):
    """Nothing tells generator steps from critic steps, so they have to be marked by hand."""


class ResumeMismatch(TopKError):
    """A checkpoint was written under other top-k settings than the present ones."""


class HookError(TopKError):
    """A plugin does not fit the hooks, or one of its hooks failed."""


class RanksApart(TopKError):
    """Another rank did not take part in what all ranks decide together."""


class RunError(TopKError):
    """A reference experiment cannot go on: its folder is in use, full or damaged."""


def unknown_name(origin: str, what: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a misspelt name at ``origin``, with the nearest of the ``known`` ones."""
    lowered = {word.lower(): word for word in known}
    nearest = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.7)
    guess = f" did you mean {lowered[nearest[0]]!r}?" if nearest else ""
    return ConfigError(f"{origin}: unknown {what};{guess} Known: {', '.join(lowered.values())}")
