"""What the phases of a training do, with the names that the rules for Projected GAN rely on."""

from torch.nn import functional as F


class ProjectedGANLoss:
    def __init__(self, device, G, D, G_ema=None):
        self.G, self.D = G, D

    def run_D(self, images):
        return self.D(images)

    def accumulate_gradients(self, phase, real_img, gen_z, cur_nimg):
        if phase == "Gboth":
            gen_logits = self.run_D(self.G(gen_z))
            (-gen_logits).mean().backward()
        elif phase == "Dmain":
            F.relu(1 + self.run_D(self.G(gen_z))).mean().backward()
            F.relu(1 - self.run_D(real_img)).mean().backward()
