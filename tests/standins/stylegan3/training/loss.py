"""What the phases of a training do, with the names that the rules for StyleGAN3 rely on."""

import torch
from torch.nn import functional as F


class StyleGAN2Loss:
    def __init__(self, device, G, D, r1_gamma=1):
        self.G, self.D, self.r1_gamma = G, D, r1_gamma

    def run_G(self, z):
        return self.G(z)

    def run_D(self, images):
        return self.D(images)

    def accumulate_gradients(self, phase, real_img, gen_z, cur_nimg):
        if phase == "Gmain":
            F.softplus(-self.run_D(self.run_G(gen_z))).mean().backward()
        else:
            F.softplus(self.run_D(self.run_G(gen_z))).mean().backward()
            real = real_img.detach().requires_grad_(True)
            scores = self.run_D(real)
            [slope] = torch.autograd.grad(scores.sum(), real, create_graph=True)
            penalty = self.r1_gamma / 2 * slope.square().sum([1, 2, 3])
            (F.softplus(-scores)[:, 0] + penalty).mean().backward()
