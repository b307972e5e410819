"""Stand-ins for modules that are not here: the upstream alone finds them, while it is gated."""

import importlib
import importlib.util
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from toy_upstream import ADAPTER, make_seam


def stubbed(toy, imports):
    (toy / "toygan/__init__.py").write_text(textwrap.dedent(imports))
    stubs = {"lost": {"NAME": 1}, "torch._lost": {"NAME": 2}, "present": {"NAME": 3}}
    importlib.invalidate_caches()
    seam = make_seam(toy, replace(ADAPTER, stubs=stubs))
    seam.apply()
    return seam


def test_only_the_upstream_finds_a_stub(toy):
    (toy / "present.py").write_text("")
    (toy / "outsider.py").write_text(
        "try:\n    import lost\nexcept ImportError:\n    lost = None\n"
    )
    seam = stubbed(
        toy,
        """
        import lost
        import outsider
        import lost as again
        from torch._lost import NAME
        import torch._lost as other
        import present
        """,
    )
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("lost")
    toygan = importlib.import_module("toygan")
    assert toygan.lost.NAME == toygan.again.NAME == 1
    assert toygan.NAME == toygan.other.NAME == 2
    assert toygan.outsider.lost is None, "imported while the upstream's stub was in use"
    assert not hasattr(toygan.present, "NAME"), "the real module wins"
    assert toygan.lost.__spec__.name == "lost"
    for name in ("lost", "torch._lost"):
        assert name not in sys.modules
        assert importlib.util.find_spec(name) is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)
    seam.undo()
    assert not hasattr(torch, "_lost")
    assert toygan.lost.NAME == 1, "the upstream keeps its names"


def test_a_stub_is_gone_after_an_import_that_failed(toy):
    seam = stubbed(toy, "import torch._lost\nimport lost\nraise KeyError('broken')\n")
    with pytest.raises(KeyError):
        importlib.import_module("toygan")
    seam.undo()
    assert not {"lost", "torch._lost"} & sys.modules.keys()
    assert not hasattr(torch, "_lost")


def test_after_undo_the_upstream_finds_no_stub(toy):
    stubbed(toy, "import lost\n").undo()
    with pytest.raises(ModuleNotFoundError, match="lost"):
        importlib.import_module("toygan")


def test_a_stub_may_lie_in_a_package_that_is_absent(toy):
    (toy / "toygan/__init__.py").write_text("from gone.parts.deep import NAME\nimport gone.parts\n")
    importlib.invalidate_caches()
    seam = make_seam(toy, replace(ADAPTER, stubs={"gone.parts.deep": {"NAME": 4}}))
    seam.apply()
    toygan = importlib.import_module("toygan")
    assert toygan.NAME == 4
    assert toygan.gone.parts.__path__ == []
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("gone.parts")
    seam.undo()
    assert not [name for name in sys.modules if name.startswith("gone")]
