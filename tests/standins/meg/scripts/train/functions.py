"""The steps of both kinds of model, with the names that the rules rely on."""

import torch
from torch import nn


def latent(args):
    return torch.randn(args.batch_size, args.z_dim).cuda()


def train_generator(netG, netE, netH, of_G, of_H, args, costs):
    for network in (netG, netH):
        network.zero_grad()
    z = latent(args)
    x_fake = netG(z)
    energy = netE(x_fake).mean()
    shuffled = z[torch.randperm(len(z))]
    pairs = netH(torch.cat([x_fake, x_fake]), torch.cat([z, shuffled]))
    of_pairs = torch.cat([torch.ones(len(z)), torch.zeros(len(z))]).cuda()
    information = nn.BCEWithLogitsLoss()(pairs, of_pairs)
    (energy + information).backward()
    for optimizer in (of_G, of_H):
        optimizer.step()
    costs.append([energy.item(), information.item()])


def slope(network, x):
    x.requires_grad_(True)
    [gradient] = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    return gradient.flatten(1).norm(dim=1)


def train_energy_model(x_real, netG, netE, of_E, args, costs):
    netE.zero_grad()
    energy = netE(x_real).mean() - netE(netG(latent(args)).detach()).mean()
    (energy + args.lamda * slope(netE, x_real).square().mean()).backward()
    of_E.step()
    costs.append(energy.item())


def train_wgan_generator(netG, netD, of_G, args):
    netG.zero_grad()
    x_fake = netG(latent(args))
    netD(x_fake).mean().neg().backward()
    of_G.step()


def train_wgan_discriminator(x_real, netG, netD, of_D, args, costs):
    netD.zero_grad()
    x_fake = netG(latent(args)).detach()
    distance = netD(x_real).mean() - netD(x_fake).mean()
    (args.lamda * (slope(netD, x_real) - 1).square().mean() - distance).backward()
    of_D.step()
    costs.append(distance.item())
