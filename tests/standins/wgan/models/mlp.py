"""A critic that averages inside, and a generator, for 16x16 images."""

from torch import nn

PIXELS = 3 * 16 * 16


class MLP_D(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.main = nn.Sequential(nn.Linear(PIXELS, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, input):
        input = input.flatten(1)
        output = self.main(input)
        return output.mean(0).view(1)


class MLP_G(nn.Module):
    def __init__(self, latent, width):
        super().__init__()
        self.main = nn.Sequential(nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, PIXELS))

    def forward(self, input):
        return self.main(input.flatten(1)).view(-1, 3, 16, 16)
