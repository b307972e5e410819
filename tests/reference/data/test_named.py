"""Real images: every form they come in is read the same, and everything else is an error."""

import functools
import gzip
import hashlib
import http.server
import pickle
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from topk_plugin.errors import ConfigError
from topk_plugin.reference.data.named import load_images, resized
from topk_plugin.reference.data.readers import COUNTS

RANDOM = np.random.default_rng(0)
TRAIN = RANDOM.integers(0, 256, (8, 28, 28), np.uint8), np.arange(8, dtype=np.uint8)
TEST = RANDOM.integers(0, 256, (3, 28, 28), np.uint8), np.array([9, 8, 0], np.uint8)
PIXELS, LABELS = (np.concatenate(both) for both in zip(TRAIN, TEST, strict=True))
NAMES = [
    f"{part}-{kind}" for part in ("train", "t10k")
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
]  # fmt: skip
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write_idx(folder: Path, zipped: bool = False, **changed: bytes) -> Path:
    """The four files; ``changed`` by the first word of their names, such as train_images."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(NAMES, (*TRAIN, *TEST), strict=True):
        content = changed.get("_".join(name.split("-")[:2]), idx(array))
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)
    return folder


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def whole(**changed: np.ndarray) -> dict[str, np.ndarray]:
    return {"images": PIXELS, "labels": LABELS} | changed


def parts(change=lambda x: x) -> dict[str, np.ndarray]:
    """Training, validation and test part, in another order than they are read in."""
    x, y = change(TRAIN[0]), TRAIN[1]
    return {
        "x_valid": change(TEST[0])[1:], "y_valid": TEST[1][1:], "x_train": x, "y_train": y,
        "x_test": change(TEST[0])[:1], "y_test": TEST[1][:1],
    }  # fmt: skip


FORMS = {
    "idx": lambda path: write_idx(path / "files"),
    "gzipped": lambda path: write_idx(path / "files", zipped=True),
    "torchvision": lambda path: write_idx(path / "MNIST/raw").parents[1],
    "npz": lambda path: write_npz(path / "a.npz", **whole()),
    "keras": lambda path: write_npz(path / "a.npz", **parts()),
    "meg": lambda path: write_npz(
        path / "a.npz", **parts(lambda x: (x / 255).astype(np.float32).reshape(-1, 784))
    ),
    "channels": lambda path: write_npz(path / "a.npz", **whole(images=PIXELS[..., None])),
    "float labels": lambda path: write_npz(path / "a.npz", **whole(labels=LABELS.astype(float))),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_give_the_same_images(tmp_path, form):
    images = load_images("mnist", str(FORMS[form](tmp_path)))
    assert torch.equal(images.pixels, torch.from_numpy(PIXELS)[:, None])
    assert images.labels.tolist() == LABELS.tolist()
    assert (images.pixels.dtype, images.labels.dtype) == (torch.uint8, torch.int64)
    assert images.classes == 10
    assert images.name == "MNIST, 11 of 70,000"
    assert images.digest == hashlib.sha256(PIXELS.tobytes() + LABELS.tobytes()).hexdigest()


def test_other_data_have_another_digest(tmp_path):
    changed = PIXELS.copy()
    changed[5, 5, 5] ^= 1
    one = load_images("mnist", str(write_npz(tmp_path / "a.npz", **whole())))
    other = load_images("mnist", str(write_npz(tmp_path / "b.npz", **whole(images=changed))))
    assert one.digest != other.digest


def test_digits_are_embedded_and_are_resized_by_name():
    images = load_images("digits")
    assert images.name == "digits, 1,797 of 8x8"
    assert images.pixels.shape == (1797, 1, 8, 8)
    assert (images.pixels.min(), images.pixels.max()) == (0, 255)
    expected = torch.from_numpy(load_digits().images)[:, None] / 16
    torch.testing.assert_close(images.pixels / 255.0, expected.float(), atol=1 / 255, rtol=0)

    large = resized(images, 28)
    assert large.name == "digits, 1,797 of 8x8, resized to 28x28"
    assert large.pixels.shape == (1797, 1, 28, 28)
    assert large.digest != images.digest
    assert torch.equal(large.labels, images.labels)
    # outermost pixels lie beyond the outermost centres, so they are those of the corners
    assert torch.equal(large.pixels[..., [0, 0, 27, 27], [0, 27, 0, 27]],
                       images.pixels[..., [0, 0, 7, 7], [0, 7, 0, 7]])  # fmt: skip
    assert resized(large, 28) is large
    # scores and checkpoints carry them
    assert images.digest.startswith("a19cb3d96bba7dea")
    assert large.digest.startswith("fef2b486b2a69302")


def test_images_become_smaller_without_aliasing():
    stripes = np.zeros((1, 28, 28), np.uint8)
    stripes[..., ::4] = 255
    images = load_images("digits")._replace(pixels=torch.from_numpy(stripes[None]))
    inner = resized(images._replace(labels=images.labels[:1]), 7).pixels[..., 1:-1].float()
    assert (inner - 255 / 4).abs().max() < 2


@pytest.mark.parametrize("form", [*FORMS, "ordered"])
def test_the_training_part_alone(tmp_path, form, monkeypatch):
    """Of arrays that name no part it is what comes first, as many as the original has."""
    if form == "ordered":
        monkeypatch.setitem(COUNTS, "mnist", {"all": 11, "train": 8})
    path = str(FORMS.get(form, FORMS["npz"])(tmp_path))
    images = load_images("mnist", path, part="train")
    named = form in ("keras", "meg")
    count = 8 if form in ("idx", "gzipped", "torchvision", "ordered") else 10 if named else 11
    assert len(images.labels) == count
    assert images.labels[:8].tolist() == LABELS[:8].tolist()
    assert torch.equal(images.pixels[:8, 0], torch.from_numpy(TRAIN[0]))
    assert images.labels.tolist()[8:] == (LABELS[9:] if named else LABELS[8:count]).tolist()
    shown = "MNIST, training part"
    assert images.name == (shown if form == "ordered" else f"{shown}, {count} of 60,000")
    assert images.digest != load_images("mnist", path).digest or count == 11


DAMAGED = {
    "truncated": ({"train_images": idx(TRAIN[0])[:-1]}, "bytes for an array of shape"),
    "too long": ({"train_labels": idx(TRAIN[1]) + b"0"}, "9 bytes for an array of shape [8]"),
    "header only": ({"t10k_images": idx(TEST[0])[:8]}, "it begins with 00 00 08 03"),
    "empty": ({"t10k_labels": b""}, "it begins with nothing"),
    "other dimensions": ({"train_images": idx(TRAIN[1])}, "it begins with 00 00 08 01"),
    "no idx": ({"train_images": b"<html>not found</html>"}, "it begins with 3c 68 74 6d"),
    "other size": ({"train_images": idx(TRAIN[0][:, 1:])}, "shape (8, 27, 28)"),
    "no images": ({"t10k_images": idx(TEST[0][:0])}, "shape (0, 28, 28)"),
    "labels missing": ({"train_labels": idx(TRAIN[1][1:])}, "shape (7,) beside 8 images"),
    "label out of range": ({"train_labels": idx(TRAIN[1] + 5)}, "labels from 5 to 12"),
}


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_idx_files_are_named(tmp_path, damage, zipped):
    changed, says = DAMAGED[damage]
    folder = write_idx(tmp_path, zipped, **changed)
    with pytest.raises(ConfigError) as caught:
        load_images("mnist", str(folder))
    assert says in str(caught.value)
    assert next(iter(changed)).replace("_", "-") in str(caught.value)


def test_a_damaged_gzip_file_is_named(tmp_path):
    path = write_idx(tmp_path, zipped=True) / f"{NAMES[0]}.gz"
    good = path.read_bytes()
    for bad in (good[:-200], b"no gzip", good[:50] + bytes(50) + good[100:]):
        path.write_bytes(bad)
        with pytest.raises(ConfigError, match=f"{NAMES[0]}.gz cannot be read .* fetch it again"):
            load_images("mnist", str(tmp_path))


WRONG = {
    "pixels above 1": (whole(images=PIXELS.astype(float)), "pixels from 0 to 255"),
    "NaN pixels": (whole(images=np.full((11, 28, 28), np.nan)), "pixels from nan to nan"),
    "signed pixels": (whole(images=PIXELS.astype(np.int32)), "type int32"),
    "colour": (whole(images=np.zeros((11, 28, 28, 3), np.uint8)), "shape (11, 28, 28, 3)"),
    "scalar": (whole(images=np.uint8(3)), "images: found an array of shape ()"),
    "one label": (whole(labels=np.uint8(3)), "labels: found an array of shape ()"),
    "negative label": (whole(labels=LABELS.astype(int) - 1), "labels from -1 to 8"),
    "label of 266": (whole(labels=LABELS.astype(int) + 266), "labels from 266 to 275"),
    "half a label": (whole(labels=LABELS + 0.5), "labels from 0.5 to 9.5"),
    "NaN label": (whole(labels=np.full(11, np.nan)), "labels from nan to nan"),
    "words": (whole(labels=np.array(["a"] * 11)), "labels of type <U1"),
    "objects": (whole(labels=np.array([None] * 11)), "cannot be read (Object arrays"),
    "other names": ({"a": PIXELS, "b": LABELS}, "it holds a, b"),
    "no labels": ({"images": PIXELS}, "labels"),
    "half a pair": (whole() | {"x_test": TEST[0]}, "y_test"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_npz_files_are_explained(tmp_path, case):
    arrays, says = WRONG[case]
    path = write_npz(tmp_path / "a.npz", **arrays)
    with pytest.raises(ConfigError) as caught:
        load_images("mnist", str(path))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_damaged_npz_files_are_named(tmp_path):
    path = write_npz(tmp_path / "a.npz", **whole())
    good = path.read_bytes()
    np.save(tmp_path / "single.npy", PIXELS)
    single = (tmp_path / "single.npy").read_bytes()
    flipped = good[:3000] + bytes([good[3000] ^ 255]) + good[3001:]
    for bad in (good[: len(good) // 2], flipped, b"", b"no archive", single):
        path.write_bytes(bad)
        with pytest.raises(ConfigError, match=r"a\.npz cannot be read .* pairs of images and"):
            load_images("mnist", str(path))


def test_missing_files_are_listed_with_what_to_do(tmp_path):
    write_idx(tmp_path)
    (tmp_path / NAMES[3]).rename(tmp_path / "labels")
    with pytest.raises(ConfigError) as caught:
        load_images("fashion-mnist", str(tmp_path))
    said = str(caught.value)
    assert f"in {tmp_path}: labels, {NAMES[2]}, {NAMES[0]}, {NAMES[1]}\n" in said
    assert f"in {tmp_path}/FashionMNIST/raw: no such folder\n" in said
    assert all(name in said for name in NAMES)
    assert "--download" in said
    assert "dataset-fashion-mnist" in said

    with pytest.raises(ConfigError, match="found no path for the data set mnist"):
        load_images("mnist")
    with pytest.raises(ConfigError, match="minst: unknown data set; did you mean 'mnist'"):
        load_images("minst", str(tmp_path))
    with pytest.raises(ConfigError, match="digits, which comes with scikit-learn"):
        load_images("digits", str(tmp_path))


def test_more_images_than_mnist_has_are_not_mnist(tmp_path):
    many = np.zeros((70_001, 28, 28), np.uint8)
    path = write_npz(tmp_path / "a.npz", images=many, labels=many[:, 0, 0])
    with pytest.raises(ConfigError, match="found 70001 images, expected at most 70000"):
        load_images("mnist", str(path))
    exact = write_npz(tmp_path / "b.npz", images=many[1:], labels=many[1:, 0, 0])
    assert load_images("fashion-mnist", str(exact)).name == "Fashion-MNIST"


def test_torchvision_fetches_what_is_missing(tmp_path, monkeypatch):
    """From a server on this machine; then nothing is fetched a second time."""
    datasets = pytest.importorskip("torchvision.datasets")
    served = write_idx(tmp_path / "served", zipped=True)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, form, *values):
            asked.append(values)

    handler = functools.partial(Handler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in served.iterdir()}
        monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        resources = [(f"{name}.gz", md5[f"{name}.gz"]) for name in NAMES]
        monkeypatch.setattr(datasets.MNIST, "resources", resources)
        target = tmp_path / "target"
        images = load_images("mnist", str(target), download=True)
        assert torch.equal(images.pixels[:, 0], torch.from_numpy(PIXELS))
        assert len(asked) >= 4
        count = len(asked)
        assert load_images("mnist", str(target), download=True).digest == images.digest
        assert len(asked) == count
        server.shutdown()


def test_a_failed_download_says_so(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody listens
    with pytest.raises(ConfigError, match="could not fetch the data set mnist .*refused.*network"):
        load_images("mnist", str(tmp_path / "new"), download=True)
    folder = write_idx(tmp_path / "there")
    assert len(load_images("mnist", str(folder), download=True).labels) == 11
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="could not fetch the data set mnist"):
        load_images("mnist", str(tmp_path / "file/folder"), download=True)


# --- CIFAR-10 -----------------------------------------------------------------------------------

BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """A folder with two random images a file, which torchvision takes for the genuine ones."""
    kind = pytest.importorskip("torchvision.datasets").CIFAR10
    folder = tmp_path / "data/cifar-10-batches-py"
    folder.mkdir(parents=True)
    random, md5 = np.random.default_rng(1), {}
    for number, name in enumerate([*BATCHES, "batches.meta"]):
        pixels = random.integers(0, 256, (2, 3 * 32 * 32), np.uint8)
        content = {"data": pixels, "labels": [number, 9 - number]}
        if name == "batches.meta":
            content = {"label_names": [*"abcdefghij"]}
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        md5[name] = hashlib.md5(data).hexdigest()
    monkeypatch.setattr(kind, "train_list", [[name, md5[name]] for name in BATCHES[:5]])
    monkeypatch.setattr(kind, "test_list", [[name, md5[name]] for name in BATCHES[5:]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5["batches.meta"]})
    return folder


def test_cifar10_is_read_from_its_batches(cifar10):
    stored = [pickle.loads((cifar10 / name).read_bytes()) for name in BATCHES]
    pixels = np.concatenate([batch["data"] for batch in stored]).reshape(-1, 3, 32, 32)
    labels = sum((batch["labels"] for batch in stored), [])
    images = load_images("cifar10", str(cifar10))
    assert torch.equal(images.pixels, torch.from_numpy(pixels))
    assert images.labels.tolist() == labels
    assert images.digest == hashlib.sha256(pixels.tobytes() + bytes(labels)).hexdigest()
    assert (images.name, images.classes) == ("CIFAR-10, 12 of 60,000", 10)
    train = load_images("cifar10", str(cifar10.parent), part="train")
    assert torch.equal(train.pixels, images.pixels[:10])
    assert train.labels.tolist() == labels[:10]
    assert train.name == "CIFAR-10, training part, 10 of 50,000"


def test_other_files_than_the_genuine_ones_are_refused(cifar10):
    """Before they are unpickled, which would run what they say."""
    good = (cifar10 / "data_batch_2").read_bytes()
    for change, said in (
        (good[:-9], "data_batch_2: is another file than the genuine one"),
        (None, "data_batch_2: missing"),
    ):
        (cifar10 / "data_batch_2").unlink()
        if change:
            (cifar10 / "data_batch_2").write_bytes(change)
        else:
            (cifar10 / "batches.meta").write_text("")
        for part in ("all", "train"):
            with pytest.raises(ConfigError) as caught:
                load_images("cifar10", str(cifar10), part=part)
            assert said in str(caught.value)
            assert "data_batch_3:" not in str(caught.value)
            assert "--download" in str(caught.value)
    assert "batches.meta: is another file" in str(caught.value)
    with pytest.raises(ConfigError, match="no such folder\nExpected there the genuine data_batch"):
        load_images("cifar10", str(cifar10 / "elsewhere"))
    with pytest.raises(ConfigError, match="found no path for the data set cifar10"):
        load_images("cifar10")


def test_a_download_of_cifar10_unpacks_what_is_there(cifar10, monkeypatch):
    from torchvision.datasets import CIFAR10

    archive = cifar10.parent / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(cifar10, cifar10.name)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/")  # nobody listens
    before = load_images("cifar10", str(cifar10)).digest
    (cifar10 / "test_batch").write_text("damaged")
    assert load_images("cifar10", str(cifar10), download=True).digest == before
    (cifar10 / "test_batch").unlink()
    archive.unlink()
    with pytest.raises(ConfigError, match="could not fetch the data set cifar10 .*batches-py"):
        load_images("cifar10", str(cifar10), download=True)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_genuine_fashion_mnist():
    images = load_images("fashion-mnist", str(DEBIAN))
    assert images.name == "Fashion-MNIST"
    assert images.labels.bincount().tolist() == [7000] * 10
