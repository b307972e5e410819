"""Calls what the rules for SAGAN rely on."""

from parameter import get_parameters
from trainer import Trainer, loader_of

if __name__ == "__main__":
    config = get_parameters()
    Trainer(loader_of(config), config).train()
