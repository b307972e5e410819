"""facebookresearch/audiocraft: its packages, of which just what is imported from them runs."""

import importlib.machinery
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

(root,) = {p for p in map(Path, sys.path) if (p / "audiocraft" / "solvers").is_dir()}


def package(name, **holds):
    module = types.ModuleType(name)
    module.__path__ = [str(root.joinpath(*name.split(".")))]
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    sys.modules[name] = module
    vars(module).update(holds)
    return module


class Nothing:
    """What is derived from, and does nothing here."""


package("audiocraft")
package("audiocraft.models", builders=None, CompressionModel=object)
package("audiocraft.utils")
package("audiocraft.utils.samples")
solvers = package("audiocraft.solvers")
for name in (
    "audiocraft.solvers.builders", "audiocraft.utils.checkpoint", "audiocraft.utils.utils",
    "audiocraft.utils.samples.manager", "xformers", "xformers.ops",
):  # fmt: skip
    sys.modules[name] = MagicMock(__spec__=importlib.machinery.ModuleSpec(name, None))
solvers.builders = sys.modules["audiocraft.solvers.builders"]
solvers.base = package("audiocraft.solvers.base", StandardSolver=Nothing)
package("transformers", EncodecModel=Nothing)
