"""Small data sets, in the files that the scripts read, made of scikit-learn's digits."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from scipy.io import wavfile
from sklearn.datasets import load_digits

IMAGES = 32
RATE = 22050  # of tones, in Hz
Writer = Callable[[Path], None]


def digits(size: int, first: int = 0, many: int = IMAGES) -> tuple[np.ndarray, np.ndarray]:
    """``many`` images (N, size, size), uint8, and their labels."""
    images, labels = load_digits(return_X_y=True)
    some = (images[first : first + many].reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    resized = [np.asarray(Image.fromarray(image).resize((size, size))) for image in some]
    return np.stack(resized), labels[first : first + many].astype(np.uint8)


def coloured(size: int, first: int = 0, many: int = IMAGES) -> np.ndarray:
    """(N, size, size, 3), uint8, each of a colour of its own."""
    images = digits(size, first, many)[0].astype(float)
    colours = np.random.default_rng(first).uniform(0.3, 1, (many, 1, 1, 3))
    return (images[..., None] * colours).astype(np.uint8)


def mnist(data: Path) -> None:
    """The idx files of MNIST, training and test images."""
    folder = data / "mnist" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, first in (("train", 0), ("t10k", IMAGES)):
        images, labels = digits(28, first)
        header = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">4BI", 0, 0, 8, 1, len(labels))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
        for path in folder.glob(f"{part}-*-ubyte"):
            path.with_suffix(".gz").write_bytes(gzip.compress(path.read_bytes()))


def mnist_m(data: Path) -> None:
    """MNIST, and the tensors that MNIST-M is unpacked to: (N, 28, 28, 3) and the labels."""
    mnist(data)
    folder = data / "mnistm" / "processed"
    folder.mkdir(parents=True)
    for part, first in (("train", 0), ("test", IMAGES)):
        labels = torch.as_tensor(digits(28, first)[1])
        images = torch.as_tensor(coloured(28, first))
        torch.save((images, labels.long()), folder / f"mnist_m_{part}.pt")


def _write(folder: Path, images: np.ndarray, kind: str = "png") -> None:
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:06}.{kind}")


def pairs(data: Path) -> None:
    """Images whose halves belong together."""
    for part, first in (("train", 0), ("val", IMAGES)):
        both = np.concatenate([coloured(32, first, 16), coloured(32, first + 1, 16)], 2)
        _write(data / "pairs" / part, both)


def domains(data: Path) -> None:
    """Two folders of images of two kinds."""
    for part, first in (("train", 0), ("test", IMAGES)):
        for number, domain in enumerate("AB"):
            _write(data / "domains" / part / domain, coloured(32, first + 100 * number, 16))


def faces(data: Path) -> None:
    """16 images."""
    _write(data / "faces", coloured(32, 0, 16), "jpg")


def folder_of_images(data: Path) -> None:
    """32 images of one class."""
    _write(data / "images" / "digits", coloured(32))


def array(size: int) -> Writer:
    """32 images (32, 3, size, size) from -1 to 1, as one array."""

    def write(data: Path) -> None:
        data.mkdir(parents=True)
        np.save(data / "array.npy", coloured(size).transpose(0, 3, 1, 2) / 127.5 - 1)

    return write


def lightning_mnist(data: Path) -> None:
    """MNIST, where Lightning's own data module looks for it."""
    mnist(data)
    (data / "MNIST").symlink_to("mnist/MNIST")


def unaligned(data: Path) -> None:
    """Two folders of images of two kinds, beside each other."""
    for number, domain in enumerate("AB"):
        _write(data / "images" / f"train{domain}", coloured(32, 100 * number, 16))


def labelled(data: Path) -> None:
    """Images, and maps of three labels that belong to them."""
    _write(data / "train_img", coloured(32))
    _write(data / "train_label", digits(32)[0] // 100)


def progressive(data: Path) -> None:
    """16 images, and the options of a training at three sizes, each grown from the last."""
    faces(data)
    options = {
        "maxIterAtScale": [8, 8, 8], "alphaNJumps": [0, 2, 2], "alphaSizeJumps": [0, 2, 2],
        "depthScales": [8, 8, 8], "miniBatchSize": 8, "dimLatentVector": 8,
    }  # fmt: skip
    (data / "options.json").write_text(json.dumps({"pathDB": "data/faces", "config": options}))


def for_diffusion(data: Path) -> None:
    """32 images, and the folder of an experiment that was begun: then no code is copied to it."""
    folder_of_images(data)
    (data.parent / "saved_info" / "dd_gan" / "cifar10" / "out").mkdir(parents=True)


def for_vqgan(data: Path) -> None:
    """32 images, and diffusers' configurations of a small VQ-GAN and its critic."""
    folder_of_images(data)
    generator = {
        "_class_name": "VQModel", "in_channels": 3, "out_channels": 3, "latent_channels": 4,
        "block_out_channels": [8, 8], "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2, "layers_per_block": 1, "norm_num_groups": 4,
        "num_vq_embeddings": 16, "vq_embed_dim": 4,
    }  # fmt: skip
    critic = {"_class_name": "Discriminator", "hidden_channels": 32, "depth": 4}
    for name, configuration in (("generator", generator), ("critic", critic)):
        (data / name).mkdir()
        (data / name / "config.json").write_text(json.dumps(configuration))


def super_resolution(model: str) -> Writer:
    """Images, small ones, and the options of a training of BasicSR or Real-ESRGAN."""
    adam = {"type": "Adam", "lr": 1e-3, "betas": [0.9, 0.99]}

    def write(data: Path) -> None:
        _write(data / "large", coloured(32))
        _write(data / "small", coloured(8))
        images = {
            "name": "digits", "type": "PairedImageDataset", "dataroot_gt": "data/large",
            "dataroot_lq": "data/small", "io_backend": {"type": "disk"}, "gt_size": 32,
            "use_hflip": True, "use_rot": False, "num_worker_per_gpu": 0,
            "batch_size_per_gpu": 8,
        }  # fmt: skip
        training = {
            "ema_decay": 0.9, "optim_g": dict(adam), "optim_d": dict(adam), "total_iter": 16,
            "scheduler": {"type": "MultiStepLR", "milestones": [100], "gamma": 0.5},
            "pixel_opt": {"type": "L1Loss", "loss_weight": 1e-2, "reduction": "mean"},
            "gan_opt": {
                "type": "GANLoss", "gan_type": "vanilla", "real_label_val": 1.0,
                "fake_label_val": 0.0, "loss_weight": 5e-3,
            },
        }  # fmt: skip
        options = {
            "name": "out", "model_type": model, "scale": 4, "high_order_degradation": False,
            "l1_gt_usm": True, "percep_gt_usm": True, "gan_gt_usm": False, "num_gpu": 0,
            "manual_seed": 0,
            "datasets": {"train": images}, "train": training,
            "network_g": {
                "type": "MSRResNet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8,
                "num_block": 1, "upscale": 4,
            },
            "network_d": {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 8},
            "path": {"pretrain_network_g": None, "strict_load_g": True, "resume_state": None},
            "logger": {"print_freq": 100, "save_checkpoint_freq": 100, "use_tb_logger": False},
        }  # fmt: skip
        (data / "options.yml").write_text(yaml.safe_dump(options))

    return write


def tone(number: int) -> np.ndarray:
    """6,000 samples: a tone, its octave, and a little noise."""
    rng = np.random.default_rng(number)
    turn = 2 * np.pi * rng.uniform(100, 800) * np.arange(6000) / RATE
    return 0.5 * np.sin(turn) + 0.2 * np.sin(2 * turn) + 0.02 * rng.standard_normal(6000)


def waves(data: Path) -> None:
    """12 tones (12, 4096), as one array."""
    data.mkdir(parents=True)
    np.save(data / "waves.npy", np.stack([tone(number)[:4096] for number in range(12)]))


def tones(data: Path) -> None:
    """13 tones, the lists of them, and a small configuration of HiFi-GAN."""
    data.mkdir(parents=True)
    for number, wave in enumerate(tone(number) for number in range(13)):
        wavfile.write(data / f"{number}.wav", RATE, (wave * 20000).astype(np.int16))
    names = [f"{number}|x" for number in range(13)]
    (data / "train.txt").write_text("\n".join(names[:12]))
    (data / "val.txt").write_text(names[12])
    configuration = {
        "resblock": "2", "num_gpus": 0, "batch_size": 4, "learning_rate": 2e-4, "adam_b1": 0.8,
        "adam_b2": 0.99, "lr_decay": 0.999, "seed": 1234, "upsample_rates": [8, 8],
        "upsample_kernel_sizes": [16, 16], "upsample_initial_channel": 16,
        "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 2]], "segment_size": 2048,
        "num_mels": 80, "num_freq": 1025, "n_fft": 256, "hop_size": 64, "win_size": 256,
        "sampling_rate": RATE, "fmin": 0, "fmax": 8000, "fmax_for_loss": None, "num_workers": 0,
        "dist_config": {"dist_backend": "gloo", "dist_url": "tcp://localhost:54321",
                        "world_size": 1},
    }  # fmt: skip
    (data / "small.json").write_text(json.dumps(configuration))


def many_faces(data: Path) -> None:
    """Files of which the last 4,000 are held out: 16 images, again and again."""
    _repeated(data / "faces", 4000)


def celeba(data: Path) -> None:
    """Files of which the last 2,000 are held out, and their attributes."""
    names = _repeated(data / "faces", 2000)
    attributes = ["Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young"]
    values = np.random.default_rng(0).choice(["-1", "1"], (len(names), 5))
    lines = [f"{name} {' '.join(row)}" for name, row in zip(names, values, strict=True)]
    text = "\n".join([str(len(names)), " ".join(attributes), *lines])
    (data / "faces" / "list_attr_celeba.txt").write_text(text + "\n")


def _repeated(folder: Path, held_out: int) -> list[str]:
    _write(folder, coloured(32, 0, 16), "jpg")
    for number in range(16, 16 + held_out):
        (folder / f"{number:06}.jpg").symlink_to(f"{number % 16:06}.jpg")
    return sorted(path.name for path in folder.glob("*.jpg"))
