"""A critic that averages inside, and a generator, for 16x16 images."""

from torch import nn


class DCGAN_D(nn.Module):
    def __init__(self, channels):
        super().__init__()
        features = nn.Conv2d(3, channels, 4, 4), nn.BatchNorm2d(channels), nn.LeakyReLU(0.2)
        self.main = nn.Sequential(*features, nn.Conv2d(channels, 1, 4))

    def forward(self, input):
        output = self.main(input)
        return output.mean(0).view(1)


class DCGAN_G(nn.Module):
    def __init__(self, latent, channels):
        super().__init__()
        base = nn.ConvTranspose2d(latent, channels, 4), nn.BatchNorm2d(channels), nn.ReLU()
        self.main = nn.Sequential(*base, nn.ConvTranspose2d(channels, 3, 4, 4), nn.Tanh())

    def forward(self, input):
        return self.main(input)


class DCGAN_G_nobn(DCGAN_G):
    def __init__(self, latent, channels):
        super().__init__(latent, channels)
        self.main[1] = nn.Identity()
