"""Which modules are the upstream's, which version it is, and whether it is as it should be."""

import importlib
import inspect
import json
import sys
from dataclasses import replace

import pytest
import torch
from toy_upstream import (
    ADAPTER,
    LOSSES,
    forget,
    functions,
    is_gated,
    is_ours,
    load,
    make_seam,
    write,
)

from topk_plugin.errors import NoEffectError, SeamNotFound, UnsupportedUpstream

# --- what belongs to the upstream, and which version it is ----------------------------------------


def install(folder, version="1.0", editable=None, record=True):
    """A dist-info folder, as installers write it."""
    info = folder / f"toy_gan-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: toy-gan\nVersion: {version}\n")
    files = ["toygan/__init__.py", "toygan/losses.py", "toygan/trainer.py"]
    if record:
        (info / "RECORD").write_text("".join(f"{f},,\n" for f in files if editable is None))
    if editable is not None:
        url = {"url": editable.as_uri(), "dir_info": {"editable": True}}
        (info / "direct_url.json").write_text(json.dumps(url))


INSTALLED = replace(ADAPTER, distribution="toy-gan", install="pip install toy-gan==1.0")


def test_an_installed_distribution_belongs(toy, tmp_path):
    install(toy)
    seam = make_seam(tmp_path / "elsewhere", INSTALLED)
    seam.apply()
    assert is_gated(load()[0].generator_loss)
    assert str(seam) == "toy (toy-gan 1.0)"
    assert seam.notes == []
    seam.undo()


def test_an_editable_distribution_belongs(toy, tmp_path, monkeypatch):
    site = tmp_path / "site"
    install(site, editable=toy)
    monkeypatch.syspath_prepend(str(site))
    seam = make_seam(tmp_path / "elsewhere", INSTALLED)
    seam.apply()
    assert is_gated(load()[0].generator_loss)
    assert str(seam) == "toy (toy-gan 1.0)"
    seam.undo()


def test_another_version_with_the_same_signatures_is_named(toy, tmp_path):
    install(toy, version="1.7")
    seam = make_seam(tmp_path / "elsewhere", INSTALLED)
    seam.apply()
    load()
    assert seam.notes == [
        "note: toy-gan 1.7 is not what the adapter toy was tested with (1.0); what it relies "
        "on matches"
    ]
    seam.undo()


def test_a_checkout_goes_before_the_installed_one(toy, tmp_path, monkeypatch):
    site = tmp_path / "site"
    write(site)
    install(site, version="0.5")
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    seam = make_seam(toy, INSTALLED)
    seam.apply()
    assert is_gated(load()[0].generator_loss)
    assert str(seam) == "toy (someone/toygan 1.0)"
    assert seam.notes == []
    seam.undo()


def test_what_is_not_installed_says_how_to_install_it(toy, tmp_path):
    seam = make_seam(tmp_path / "elsewhere", INSTALLED)
    with pytest.raises(SeamNotFound, match=r"toy-gan is not installed here.*toy-gan==1\.0"):
        seam.apply()
    make_seam(toy, INSTALLED).apply()  # a checkout needs no distribution


def test_a_module_of_the_same_name_from_elsewhere_is_not_touched(toy, tmp_path):
    (tmp_path / "checkout").mkdir()
    seam = make_seam(tmp_path / "checkout")
    seam.apply()
    losses, trainer = load()
    assert not any(map(is_ours, functions(losses, trainer).values()))
    seam.topk.ledger.optimizer_steps = 7
    error = seam.no_effect()
    assert isinstance(error, SeamNotFound)
    assert f"toygan.losses came from {losses.__file__}, which is not of the launched" in str(error)
    assert "7 optimizer steps ran" in str(error)
    seam.undo()


def test_a_virtual_environment_in_the_checkout_is_not_the_checkout(tmp_path, monkeypatch):
    site = tmp_path / ".venv/lib/python3/site-packages"
    write(site)
    monkeypatch.syspath_prepend(str(site))
    seam = make_seam(tmp_path)
    seam.apply()
    losses, _ = load()
    assert not is_ours(losses.generator_loss)
    seam.undo()
    forget()


def test_a_checkout_that_lies_in_site_packages_is_a_checkout(tmp_path, monkeypatch):
    """Only folders below the checkout are somebody else's."""
    checkout = tmp_path / "site-packages/checkout"
    write(checkout)
    monkeypatch.syspath_prepend(str(checkout))
    seam = make_seam(checkout)
    seam.apply()
    assert is_gated(load()[0].generator_loss)
    seam.undo()
    forget()


# --- fingerprints -------------------------------------------------------------------------------

OTHER = {
    "renamed": (
        ("def inner_loss", "def inner"),
        r"there is no inner_loss\(scores\)",
    ),
    "another argument": (
        ("weight", "scale"),
        r"found generator_loss\(scores, scale=1.0\), expected generator_loss\(scores, weight=1.0\)",
    ),
    "another default": (("weight=1.0", "weight=2.0"), r"found generator_loss\(scores, weight=2.0"),
    "no class": (("class Losses(Base)", "class Lost(Base)"), r"there is no Losses\.method"),
    "no function": (
        ("    def own(self, scores):\n        return -scores.mean()", "    own = 3"),
        r"Losses\.own is a int, expected Losses\.own\(self, scores\)",
    ),
}


@pytest.mark.parametrize(("change", "match"), OTHER.values(), ids=OTHER)
def test_another_fingerprint_is_refused(toy, change, match):
    write(toy, LOSSES.replace(*change))
    seam = make_seam(toy)
    seam.apply()
    with pytest.raises(UnsupportedUpstream, match=match) as refusal:
        load()
    text = str(refusal.value)
    assert text.startswith("adapter toy: someone/toygan 1.0 is not what it was written for (1.0)")
    assert str(toy / "toygan/losses.py") in text
    assert "--critic module:Class" in text
    assert "--force" in text
    assert "toygan.losses" not in sys.modules


@pytest.mark.parametrize("change", [change for change, _ in OTHER.values()][:4], ids=[*OTHER][:4])
def test_force_wraps_what_there_is(toy, change):
    write(toy, LOSSES.replace(*change))
    seam = make_seam(toy, force=True)
    seam.apply()
    losses, _ = load()
    assert is_gated(losses.generator_loss)
    assert "ignored (--force): " in seam.notes[0]
    seam.undo()
    assert inspect.isfunction(losses.generator_loss)


def test_annotations_and_decorators_do_not_matter(toy):
    text = LOSSES.replace("(scores, weight=1.0):", "(scores: 'T', weight: float = 1.0) -> 'T':")
    write(toy, text.replace("def inner_loss", "import torch\n@torch.enable_grad()\ndef inner_loss"))
    seam = make_seam(toy)
    seam.apply()
    assert is_gated(load()[0].inner_loss)
    seam.undo()


def test_never_imported_and_never_called(toy):
    seam = make_seam(toy)
    seam.apply()
    seam.topk.ledger.optimizer_steps = 3
    error = seam.no_effect()
    assert isinstance(error, SeamNotFound)
    assert "found no import of toygan.losses, toygan.trainer, while 3 optimizer steps" in str(error)
    importlib.import_module("toygan.losses")  # not every module has to be
    error = seam.no_effect()
    assert isinstance(error, NoEffectError)
    assert "its loss was never called" in str(error)
    sys.modules["toygan.losses"].generator_loss(torch.zeros(4))
    assert "no gradient of its scores came back" in str(seam.no_effect())
    sys.modules["toygan.losses"].generator_loss = None
    assert "toygan.losses.generator_loss was replaced after" in str(seam.no_effect())
    with pytest.warns(UserWarning, match="replaced by somebody"):
        seam.undo()
