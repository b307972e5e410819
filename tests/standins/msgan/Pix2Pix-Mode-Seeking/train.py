"""A loop with the names that the rules for MSGAN rely on."""

from pathlib import Path

import torch
from models.pix2pix_model import Pix2PixModel
from options.base_options import BaseOptions
from PIL import Image
from torchvision.transforms import functional as F

if __name__ == "__main__":
    opt = BaseOptions().parse()
    files = sorted(Path(opt.dataroot, "train").iterdir())
    dataset_size = len(files)
    pairs = [F.to_tensor(Image.open(file).resize((32, 16))).mul(2).sub(1) for file in files]
    dataset = torch.utils.data.DataLoader(pairs, opt.batch_size, shuffle=True)
    model = Pix2PixModel()
    model.initialize(opt)
    for epoch in range(opt.epoch_count, 1 + opt.niter + opt.niter_decay):
        for data in dataset:
            if len(data) == opt.batch_size:
                model.optimize_parameters(data[..., :16], data[..., 16:])
        model.save_networks("latest")
        model.save_networks(epoch)
        model.update_learning_rate()
