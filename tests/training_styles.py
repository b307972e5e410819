"""The training scripts in scripts/, one style a file, and the weights that each ends with."""

from pathlib import Path

import torch

SCRIPTS = Path(__file__).parent / "scripts"


def weights(file: Path) -> dict[str, torch.Tensor]:
    nets = torch.load(file, weights_only=True)
    return {f"{net}.{name}": value for net in nets for name, value in nets[net].items()}


def difference(a: dict, b: dict) -> float:
    """Largest difference of any weight or buffer, relative to values above one, else absolute."""
    assert a.keys() == b.keys()
    return max(((a[n] - b[n]).abs() / b[n].abs().clamp(min=1.0)).max().item() for n in a)
