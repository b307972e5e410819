"""pytorch-fid's own distance, with each SciPy that it may meet."""

import math
import warnings

import numpy as np
import pytest
import scipy.linalg


@pytest.fixture(params=["SciPy as installed", "SciPy 1.18"])
def theirs(request, monkeypatch):
    """pytorch-fid's modules, which ask ``sqrtm`` for what SciPy 1.18 has no more."""
    score = pytest.importorskip("pytorch_fid.fid_score")
    installed = scipy.linalg.sqrtm

    def without(a):
        return installed(a)

    def with_disp(a, disp=True):
        return current(a) if disp else (current(a), math.nan)

    if request.param == "SciPy 1.18":
        monkeypatch.setattr(scipy.linalg, "sqrtm", without)
        with pytest.raises(TypeError, match="disp"):
            score.calculate_frechet_distance(np.zeros(1), np.eye(1), np.zeros(1), np.eye(1))
    current = scipy.linalg.sqrtm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that disp will go, and that matrices are singular
        try:
            current(np.eye(1), disp=False)
        except TypeError:
            monkeypatch.setattr(scipy.linalg, "sqrtm", with_disp)
        yield score
