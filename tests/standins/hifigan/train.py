"""A loop with the names that the rules for HiFi-GAN rely on."""

import argparse
import itertools
import json
from pathlib import Path

import torch
from models import (
    Generator,
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    discriminator_loss,
    feature_loss,
    generator_loss,
)
from scipy.io import wavfile
from torch.nn import functional as F


def sounds(a, size):
    for line in Path(a.input_training_file).read_text().splitlines():
        _, sound = wavfile.read(f"{a.input_wavs_dir}/{line.partition('|')[0]}.wav")
        yield torch.as_tensor(sound[None, :size] / 20000)


def go_on(a, parts):
    """Steps done, and the epoch in which that was."""
    files = sorted(Path(a.checkpoint_path).glob("do_*"))
    if not files:
        return 0, 0
    saved = torch.load(files[-1])
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["steps"] + 1, saved["epoch"]


def train(rank, a, h):
    torch.manual_seed(h["seed"])
    device = torch.device("cuda:{:d}".format(rank))  # noqa: UP032
    generator = Generator(h).to(device)
    mpd, msd = MultiPeriodDiscriminator(), MultiScaleDiscriminator()
    torch.nn.ModuleList([mpd, msd]).to(device)
    Path(a.checkpoint_path).mkdir(exist_ok=True)
    optim_g = torch.optim.AdamW(generator.parameters(), 1e-3)
    optim_d = torch.optim.AdamW(itertools.chain(msd.parameters(), mpd.parameters()), 1e-3)
    parts = {"generator": generator, "mpd": mpd, "msd": msd, "g": optim_g, "d": optim_d}
    steps, first = go_on(a, parts)
    data = list(sounds(a, h["segment_size"]))
    loader = torch.utils.data.DataLoader(data, h["batch_size"], shuffle=True, drop_last=True)
    for epoch in range(first, a.training_epochs):
        for y in loader:
            y = y.to(device)
            y_g_hat = generator(y)
            optim_d.zero_grad()
            real_f, fake_f, _, _ = mpd(y, y_g_hat.detach())
            real_s, fake_s, _, _ = msd(y, y_g_hat.detach())
            (discriminator_loss(real_f, fake_f) + discriminator_loss(real_s, fake_s)).backward()
            optim_d.step()
            optim_g.zero_grad()
            loss = F.l1_loss(y_g_hat, y)
            _, y_df_hat_g, fmap_f_r, fmap_f_g = mpd(y, y_g_hat)
            _, y_ds_hat_g, fmap_s_r, fmap_s_g = msd(y, y_g_hat)
            loss = loss + feature_loss(fmap_f_r, fmap_f_g) + feature_loss(fmap_s_r, fmap_s_g)
            loss = loss + generator_loss(y_df_hat_g)[0] + generator_loss(y_ds_hat_g)[0]
            loss.backward()
            optim_g.step()
            if steps and steps % a.checkpoint_interval == 0:
                state = {"steps": steps, "epoch": epoch}
                for name, part in parts.items():
                    state[name] = part.state_dict()
                torch.save(state, f"{a.checkpoint_path}/do_{steps:08d}")
            steps += 1


def main():
    parser = argparse.ArgumentParser()
    for name in ("config", "input_wavs_dir", "input_training_file", "input_validation_file"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--checkpoint_path", default="checkpoints")
    parser.add_argument("--training_epochs", type=int)
    parser.add_argument("--checkpoint_interval", type=int)
    a = parser.parse_args()
    train(0, a, json.loads(Path(a.config).read_text()))


if __name__ == "__main__":
    main()
