"""The experiments of the paper, built on the public names of topk_plugin alone.

Raises:
    ConfigError: when imported beside a torch older than 2.4.
"""

import torch

from topk_plugin.errors import ConfigError

if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 4):
    raise ConfigError(
        f"the reference experiments: found torch {torch.__version__}, expected 2.4 or newer. "
        "Reproduce them in an environment of their own, `pip install 'topk_plugin[reference]'`; "
        "top-k itself runs beside this torch."
    )
