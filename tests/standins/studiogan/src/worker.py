"""A critic that returns a dict, and the two steps."""

import os

import torch
import wandb
from kornia.filters import filter2d
from torch import nn

BLUR = filter2d


class Critic(nn.Module):
    def __init__(self, MODEL):
        super().__init__()
        self.wide = MODEL.d_cond_mtd == "SPD"
        self.doubled = 1 + (MODEL.aux_cls_type == "ADC")
        self.features = nn.Sequential(nn.Conv2d(3, 2, 4, 4), nn.LeakyReLU(0.2), nn.Flatten())
        self.score = nn.Linear(128, 11 if MODEL.d_cond_mtd == "MH" else 1)
        self.classes = nn.Linear(128, 10 * self.doubled)

    def forward(self, images, label, adc_fake=False):
        h = self.features(images)
        score = self.score(h)
        score = score if self.wide or score.shape[1] > 1 else score[:, 0]
        label = label * self.doubled + adc_fake
        return {"h": h, "adv_output": score, "cls_output": self.classes(h), "label": label}


def make_generator(MODEL):
    layers = nn.Linear(MODEL.z_dim, 128), nn.ReLU(), nn.Unflatten(1, (2, 8, 8))
    return nn.Sequential(*layers, nn.ConvTranspose2d(2, 3, 4, 4), nn.Tanh())


class WORKER:
    def __init__(self, cfgs, Gen, Dis, data, local_rank):
        self.cfgs, self.data, self.device = cfgs, data, local_rank
        self.Gen, self.Dis = Gen.to(local_rank), Dis.to(local_rank)
        self.MODEL, self.LOSS, self.OPTIMIZATION = cfgs.MODEL, cfgs.LOSS, cfgs.OPTIMIZATION
        self.batches = iter(data)
        self.of_classes = nn.CrossEntropyLoss()
        wandb.init(name="standin")

    def fakes(self):
        size = self.OPTIMIZATION.batch_size
        z = torch.randn(size, self.MODEL.z_dim, device=self.device)
        return self.Gen(z), torch.randint(10, (size,), device=self.device)

    def sample_data_basket(self):
        batch = next(self.batches, None)
        if batch is None:
            self.epoch_counter += 1
            self.batches = iter(self.data)
            batch = next(self.batches)
        size = self.OPTIMIZATION.batch_size
        return list(zip(*(part.to(self.device).split(size) for part in batch), strict=True))

    def train_discriminator(self, current_step=0):
        self.Dis.requires_grad_(True)
        for real, label in self.sample_data_basket():
            fakes, labels = self.fakes()
            self.cfgs.d_optimizer.zero_grad()
            of_real, of_fake = self.Dis(real, label), self.Dis(fakes.detach(), labels)
            loss = (1 - of_real["adv_output"]).relu() + (1 + of_fake["adv_output"]).relu()
            loss = loss.mean() + self.of_classes(of_real["cls_output"], of_real["label"])
            loss.backward()
            self.cfgs.d_optimizer.step()

    def train_generator(self, current_step):
        self.Dis.requires_grad_(False)
        self.cfgs.g_optimizer.zero_grad()
        for _ in range(self.OPTIMIZATION.acml_steps):
            fakes, labels = self.fakes()
            output = self.Dis(fakes, labels)
            if self.LOSS.apply_topk:
                best = output["adv_output"].topk(int(self.topk)).values
                output["adv_output"] = best
            loss = -output["adv_output"].mean()
            if self.MODEL.d_cond_mtd == "AC":
                loss = loss + self.of_classes(output["cls_output"], output["label"])
            if self.MODEL.aux_cls_type == "ADC":
                other = self.Dis(fakes, labels, adc_fake=True)
                loss = loss - self.of_classes(other["cls_output"], other["label"])
            if self.LOSS.apply_fm:
                real, label = self.sample_data_basket()[0]
                distance = self.Dis(real, label)["h"].mean(0) - output["h"].mean(0)
                loss = loss + distance.abs().mean()
            (loss / self.OPTIMIZATION.acml_steps).backward()
        self.cfgs.g_optimizer.step()

    def log_train_statistics(self, current_step):
        shown = int(self.topk) if self.LOSS.apply_topk else "N/A"
        print("Step:", current_step + 1, "Topk:", shown)
        wandb.log({"k": shown}, step=current_step)

    def save(self, step):
        folder = os.path.join(self.cfgs.RUN.save_dir, "checkpoints", "run")
        os.makedirs(folder, exist_ok=True)
        torch.save(self.Gen.state_dict(), os.path.join(folder, "G.pth"))
        told = {"step": step, "epoch": self.epoch_counter, "topk": self.topk}
        told["state_dict"] = self.Dis.state_dict()
        torch.save(told, os.path.join(folder, "D.pth"))
