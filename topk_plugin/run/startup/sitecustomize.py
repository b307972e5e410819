"""Python runs this as it starts in a process that a launched script started.

`topk run` puts this folder at the head of PYTHONPATH; see topk_plugin/run/children.py. Light:
torch and topk_plugin are left alone until the process itself imports torch.
"""

from __future__ import annotations

import contextlib
import os
import sys

TYPE_CHECKING = False  # as type checkers know it: importing typing takes time
if TYPE_CHECKING:
    from typing import Any


class AfterTorch:
    """Finds torch, and switches top-k on once it is imported.

    Where topk_plugin imports torch itself, once that is imported: it cannot be used before.
    """

    def __init__(self) -> None:
        self.under_way: list[Any] = []  # imports of the two

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The spec that Python would find, watched."""
        if name not in ("torch", "topk_plugin") or self not in sys.meta_path:
            return None
        after = sys.meta_path[sys.meta_path.index(self) + 1 :]
        finders = [finder for finder in after if hasattr(finder, "find_spec")]
        specs = (finder.find_spec(name, path, target) for finder in finders)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            self._watch(spec.loader)
        return spec

    def _watch(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            del loader.exec_module  # the loader is as it was
            self.under_way.append(module)
            try:
                execute(module)
            finally:
                self.under_way.remove(module)
            if "torch" in sys.modules and not self.under_way and self in sys.meta_path:
                sys.meta_path.remove(self)
                switch_on()

        loader.exec_module = exec_module


def switch_on() -> None:
    """Switch top-k on, or say why that cannot be done."""
    try:
        from topk_plugin.run.activation import inherit

        inherit()
    except Exception as error:  # the script goes on without top-k
        with contextlib.suppress(Exception):  # a closed stream, or None
            sys.stderr.write(
                f"top-k NOT ACTIVE in process {os.getpid()}: {type(error).__name__}: {error} "
                f"({sys.executable})\n"
            )


def step_aside() -> None:
    """Leave name and path to the sitecustomize that this one hides, if there is one."""
    here = os.path.realpath(os.path.dirname(__file__))
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != here]
    ours = sys.modules.pop("sitecustomize")
    try:
        __import__("sitecustomize")
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
        sys.modules["sitecustomize"] = ours


if "TOPK_ACTIVATION" in os.environ:
    if "torch" in sys.modules:  # a .pth file imported it, before this file ran
        switch_on()
    else:
        sys.meta_path.insert(0, AfterTorch())
step_aside()
