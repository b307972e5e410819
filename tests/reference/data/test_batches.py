"""Batches by number: the same from memory and from a folder, alone and together, after any stop."""

import hashlib
import math
import multiprocessing
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets, transforms

from topk_plugin.errors import ConfigError, RunError
from topk_plugin.reference.data import batches
from topk_plugin.reference.data import folder as folders
from topk_plugin.reference.data.batches import Cached, Streamed, source
from topk_plugin.reference.data.folder import open_folder
from topk_plugin.reference.data.named import load_images, resized
from topk_plugin.reference.data.order import permutation
from topk_plugin.reference.randomness import stream

CPU = torch.device("cpu")
SIZE, BATCH = 16, 4
KINDS = ("cached", "streamed")
STORED = {  # height, width, Pillow's mode
    "dog/b.jpg": (30, 20, "RGB"), "dog/a.png": (20, 30, "RGB"),
    "dog/deeper/c.PNG": (17, 17, "RGBA"),
    "cat/1.bmp": (16, 16, "L"), "cat/2.png": (40, 18, "P"), "cat/3.jpeg": (18, 50, "L"),
    "cat/4.jpg": (33, 33, "CMYK"), "cat/readme.txt": None, "emu/ü.png": (9, 12, "RGB"),
    "emu/1.webp": (25, 25, "RGB"), "emu/2.tif": (25, 24, "LA"), "emu/3.png": (16, 31, "1"),
}  # fmt: skip
ORDER = ["cat/1.bmp", "cat/2.png", "cat/3.jpeg", "cat/4.jpg", "dog/a.png", "dog/b.jpg",
         "dog/deeper/c.PNG", "emu/1.webp", "emu/2.tif", "emu/3.png", "emu/ü.png"]  # fmt: skip
LABELS = [0] * 4 + [1] * 3 + [2] * 4


def write(root, stored=STORED):
    """Smooth random images."""
    random = np.random.default_rng(0)
    for name, what in stored.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if what is None:
            path.write_text("no image")
            continue
        height, width, mode = what
        small = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(path)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "zoo")


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    """A folder's images are kept, or they are not."""
    if request.param == "streamed":
        monkeypatch.setattr(batches, "CACHED_BYTES", 0)
    return request.param


def folder(root, batch=BATCH, seed=0, dataset="folder", **options):
    options = {"size": SIZE, "device": CPU, "workers": 0} | options
    return source(dataset, root and str(root), False, batch=batch, seed=seed, **options)


def pixels_of(images):
    return ((images + 1) * 127.5).round().to(torch.uint8)


def genuine(root, channels=3):
    """What torchvision alone makes of the folder."""
    cut = transforms.Compose([
        transforms.Grayscale() if channels == 1 else transforms.Lambda(lambda image: image),
        transforms.Resize(SIZE), transforms.CenterCrop(SIZE), transforms.PILToTensor(),
    ])  # fmt: skip
    found = datasets.ImageFolder(str(root), cut)
    pixels, labels = zip(*(found[i] for i in range(len(found))), strict=True)
    return torch.stack(pixels), torch.tensor(labels)


# --- what is in a batch -------------------------------------------------------------------------


def test_images_of_a_folder_are_those_of_torchvision(root, kind):
    found = folder(root)
    assert isinstance(found, Cached if kind == "cached" else Streamed)
    pixels, labels = genuine(root)
    parts = list(found.all(3))
    assert [len(part) for part in parts] == [3, 3, 3, 2]
    assert torch.equal(torch.cat(parts), pixels)
    assert labels.tolist() == LABELS
    assert (found.count, found.classes, found.channels, found.length) == (11, 3, 3, 2)
    assert found.nbytes == pixels.numel() == 11 * 3 * 16 * 16
    assert found.name == "zoo, 11 images of 3 classes at 16x16"


def test_a_batch_is_told_by_its_number_and_the_seed(root, kind):
    found, (pixels, labels) = folder(root, seed=3), genuine(root)
    for epoch in range(3):
        order = torch.randperm(11, generator=stream("order", 3, epoch, device=CPU))
        for number in range(2):
            rows = order[4 * number : 4 * number + 4]
            x, y = found.at(2 * epoch + number)
            assert torch.equal(pixels_of(x), pixels[rows])
            assert torch.equal(y, labels[rows])
            assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
            assert x.is_contiguous(memory_format=torch.channels_last)
            assert x.min() >= -1
            assert x.max() <= 1
    other = folder(root, seed=4)
    assert not torch.equal(other.at(0)[0], found.at(0)[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_begin_anywhere(root, monkeypatch, workers):
    """And go on with the same processes."""
    cached = folder(root)
    monkeypatch.setattr(batches, "CACHED_BYTES", 0)
    streamed, beside = folder(root, workers=workers), []
    for step in (0, 1, 2, 9, 11, 12, 3, 3, 10**6):
        for mine, his in zip(streamed.at(step), cached.at(step), strict=True):
            assert torch.equal(mine, his)
        beside.append(sorted(child.pid for child in multiprocessing.active_children()))
        assert streamed._ahead.start == {1: 0, 2: 0, 12: 11}.get(step, step)
        if step == 2:  # every image in between
            assert torch.equal(torch.cat([*streamed.all(4)]), genuine(root)[0])
    assert beside[0] == beside[-1]
    assert len(beside[0]) == workers


def test_processes_see_together_what_one_sees(root, kind):
    whole = folder(root, batch=8)
    parts = [folder(root, batch=8, rank=rank, world=4) for rank in range(4)]
    for step in range(3):
        images, labels = zip(*(part.at(step) for part in parts), strict=True)
        x, y = whole.at(step)
        assert torch.equal(torch.cat(images), x)
        assert torch.equal(torch.cat(labels), y)
    assert {part.length for part in parts} == {whole.length} == {1}


def test_nothing_is_drawn_from_the_global_stream(root, kind):
    before = torch.get_rng_state()
    found = folder(root, workers=1)
    found.at(0)
    next(found.all(4))
    assert torch.equal(torch.get_rng_state(), before)


def test_data_sets_in_memory():
    images = resized(load_images("digits"), SIZE)
    found = folder(None, 50, 1, "digits")
    assert (found.name, found.digest) == (images.name, images.digest)
    assert (found.count, found.length, found.classes, found.channels) == (1797, 35, 10, 1)
    order = torch.randperm(1797, generator=stream("order", 1, 1, device=CPU))
    x, y = found.at(35)
    assert torch.equal(pixels_of(x), images.pixels[order[:50]])
    assert torch.equal(y, images.labels[order[:50]])
    assert torch.equal(torch.cat([*found.all(500)]), images.pixels)


def test_the_training_part_is_what_is_trained_on(tmp_path):
    pixels, labels = np.zeros((9, 28, 28), np.uint8), np.zeros(9, np.uint8)
    np.savez(tmp_path / "a.npz", x_train=pixels[:6], y_train=labels[:6], x_test=pixels[:3],
             y_test=labels[:3])  # fmt: skip
    assert folder(tmp_path / "a.npz", dataset="mnist").count == 6


# --- what a folder is ---------------------------------------------------------------------------


def test_grey_folders_are_grey(tmp_path, kind):
    grey = {
        f"{name}/{i}.png": (20, 20, mode)
        for name in "ab"
        for i, mode in enumerate(["L", "1", "LA"])
    }
    write(tmp_path, grey)
    found = folder(tmp_path)
    assert found.channels == 1
    assert torch.equal(torch.cat([*found.all(9)]), genuine(tmp_path, 1)[0])
    with pytest.raises(
        ConfigError, match="channels: found 3 .* each of the 6 .* leave channels out"
    ):
        folder(tmp_path, channels=3)
    write(tmp_path, {"b/4.png": (20, 20, "RGB")})
    assert folder(tmp_path).channels == folder(tmp_path, channels=3).channels == 3
    assert folder(tmp_path, channels=1).at(0)[0].shape == (4, 1, SIZE, SIZE)


def test_few_images_of_many_are_probed(tmp_path, monkeypatch):
    """Evenly spaced, the first and the last of them included."""
    write(tmp_path, {"a/0.png": (9, 9, "L"), "a/1.png": (9, 9, "RGB"), "a/2.png": (9, 9, "L")})
    assert open_folder(str(tmp_path), SIZE).facts.channels == 3
    monkeypatch.setattr(folders, "PROBED", 2)
    assert open_folder(str(tmp_path), SIZE).facts.channels == 1


def test_channels_of_data_sets_in_memory():
    with pytest.raises(ConfigError, match="found 3 for digits.* are grey, expected 1; leave chan"):
        folder(None, dataset="digits", channels=3)
    assert folder(None, dataset="digits", channels=1).channels == 1


@pytest.mark.parametrize("whole", [True, False])
def test_digests_are_of_paths_and_contents(root, tmp_path, monkeypatch, whole):
    if not whole:
        monkeypatch.setattr(folders, "HASHED_BYTES", 100)
        monkeypatch.setattr(folders, "ENDS", 10)
    files = hashlib.sha256()
    for name in sorted(os.fsencode(name) for name in ORDER):
        content = (root / os.fsdecode(name)).read_bytes()
        files.update(name + b"\0" + str(len(content)).encode() + b"\n")
        files.update(content if whole else content[:10] + content[-10:])
    digest = folder(root).digest
    assert digest == hashlib.sha256(b"3x16x16\n" + files.digest()).hexdigest()
    copied = shutil.copytree(root, tmp_path / "elsewhere")
    assert folder(copied).digest == digest
    assert digest not in (folder(root, size=8).digest, folder(root, channels=1).digest)
    (copied / "dog/b.jpg").rename(copied / "dog/B.jpg")
    moved = folder(copied).digest
    content = bytearray((copied / "dog/B.jpg").read_bytes())
    content[-1] ^= 1  # of the same size
    (copied / "dog/B.jpg").write_bytes(content)
    assert len({digest, moved, folder(copied).digest}) == 3


# --- what is wrong ------------------------------------------------------------------------------


def refused(match, *arguments, **options):
    with pytest.raises(ConfigError, match=match) as caught:
        folder(*arguments, **options)
    return str(caught.value)


def test_folders_that_are_none(tmp_path, root):
    refused("found no path for the data set folder, expected a folder that holds", None)
    refused("found no such folder, expected", tmp_path / "missing")
    refused("found a file, expected", root / "dog/a.png")
    refused("found no class folder, only 0 files", tmp_path)
    (tmp_path / "a.png").write_text("")
    refused("found no class folder, only 1 files.* put them into one folder", tmp_path)
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats/notes.txt").write_text("")
    refused("no image in the class folders cats, expected files that end in .jpg", tmp_path)
    write(tmp_path, {"dogs/a.png": (9, 9, "L")})
    refused("no image in the class folders cats, expected", tmp_path)
    with pytest.raises(ConfigError, match="found a download for a folder"):
        source("folder", str(root), True, size=8, batch=1, seed=0, device=CPU)


def test_settings_that_do_not_fit(root, kind):
    refused("dataset foldr: unknown data set; did you mean 'folder'", root, dataset="foldr")
    refused("dataset cifar: unknown data set; did you mean 'cifar10'", root, dataset="cifar")
    said = "batch: found 12, expected at most the 11 images of zoo.* lower it, such as --set batch="
    refused(f"{said}11", root, batch=12)
    refused(f"{said}9", root, batch=12, world=3)
    assert folder(root, batch=11).length == 1
    refused("batch: found 1798, expected at most the 1797", None, 1798, dataset="digits")
    refused(r"found 10 for 4 proc.*multiple of 4.*--set batch=12", root, batch=10, world=4)


DAMAGED = {
    "truncated": (lambda good: good[: len(good) // 2], "truncated"),
    "no image": (lambda good: b"<html>", "UnidentifiedImageError"),
    "empty": (lambda good: b"", "UnidentifiedImageError"),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_images_are_named(root, tmp_path, kind, damage, workers, monkeypatch):
    """Also from another process, and then without its traceback."""
    monkeypatch.setattr(folders, "PROBED", 1)  # which is another image
    copied = shutil.copytree(root, tmp_path / "zoo")
    change, says = DAMAGED[damage]
    path = copied / "dog/a.png"
    path.write_bytes(change(path.read_bytes()))
    for use in (lambda found: [found.at(step) for step in range(6)], lambda found: [*found.all(4)]):
        with pytest.raises(ConfigError) as caught:
            use(folder(copied, workers=workers))
        said = str(caught.value)
        del caught  # which would keep the processes until garbage is collected
        assert said.startswith(f"data: {path} cannot be read (")
        assert says in said
        assert "replace or remove it" in said
        assert "Traceback" not in said


def test_what_is_probed_is_named_at_once(root, tmp_path):
    copied = shutil.copytree(root, tmp_path / "zoo")
    (copied / "emu/3.png").write_bytes(b"")
    refused("emu/3.png cannot be read", copied)
    deep = np.full((20, 20), 40_000, np.uint16)
    Image.fromarray(deep).save(copied / "emu/3.png")
    refused(r"emu/3.png: found pixels of more than 8 bits \(Pillow's mode I;16\)", copied)
    (copied / "emu/3.png").unlink()
    (copied / "emu/3.png").symlink_to(copied / "gone")
    refused("emu/3.png cannot be read", copied)


def test_a_mended_image_goes_on(root, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "CACHED_BYTES", 0)
    monkeypatch.setattr(folders, "PROBED", 1)
    copied = shutil.copytree(root, tmp_path / "zoo")
    found, path = folder(copied, batch=1, workers=1), copied / "dog/a.png"
    good = path.read_bytes()
    path.write_bytes(b"")
    step = permutation(11, 0, 0).tolist().index(ORDER.index("dog/a.png"))
    assert step > 0
    for before in range(step):
        found.at(before)
    with pytest.raises(ConfigError, match="a.png"):
        found.at(step)
    path.write_bytes(good)
    assert torch.equal(found.at(step)[0], folder(root, batch=1).at(step)[0])


def test_a_killed_process_is_no_riddle():
    """Not by a signal: torch's handler of it raises wherever the test then is."""

    def ended(message):
        yield from ()
        raise RuntimeError(message)

    for message in ("DataLoader worker (pid 7) is killed by signal: Killed. \nMore",
                    "DataLoader worker (pid(s) 7) exited unexpectedly"):  # fmt: skip
        with pytest.raises(RunError, match="images ended .DataLoader worker .* take fewer of them"):
            batches._next(ended(message))
    with pytest.raises(RuntimeError, match="^something else$"):
        batches._next(ended("something else"))


def work(path, box):
    box.put(folder(path, workers=2).at(0)[0].sum().item())


def test_a_process_of_a_run_decodes_by_itself(root):
    """It is a daemon, which may not start processes."""
    context = multiprocessing.get_context("fork")
    box = context.SimpleQueue()
    process = context.Process(target=work, args=(root, box), daemon=True)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert math.isclose(box.get(), folder(root).at(0)[0].sum().item())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_the_same_batches(root, kind):
    mine, his = folder(root, workers=2, device=torch.device("cuda")), folder(root)
    for step in range(5):
        for a, b in zip(mine.at(step), his.at(step), strict=True):
            assert a.is_cuda
            assert torch.equal(a.cpu(), b)
    assert torch.equal(torch.cat([*mine.all(4)]).cpu(), torch.cat([*his.all(4)]))
