"""Langevin samplers, which call the networks themselves."""

import torch


def propose(z, netG, netE, args):
    z.requires_grad_(True)
    energy = netE(netG(z)) * args.temp
    [gradient] = torch.autograd.grad(energy.sum(), z)
    noise = torch.randn_like(z) * (2 * args.alpha) ** 0.5
    return energy, gradient, (z - args.alpha * gradient + noise).detach()


def MALA_sampler(netG, netE, args):
    z = torch.randn((args.batch_size, args.z_dim)).cuda()
    for _ in range(args.mcmc_iters):
        energy, _, proposed = propose(z, netG, netE, args)
        accepted = torch.rand(len(z)) < (energy - netE(netG(proposed)) * args.temp).exp()
        z = torch.where(accepted[:, None], proposed, z).detach()
    return z


def MALA_corrected_sampler(netG, netE, args):
    z = torch.randn((args.batch_size, args.z_dim)).cuda()
    for _ in range(args.mcmc_iters):
        energy, gradient, proposed = propose(z, netG, netE, args)
        its_energy, its_gradient, _ = propose(proposed, netG, netE, args)
        there = (proposed - z + args.alpha * gradient).norm(dim=1)
        back = (z - proposed + args.alpha * its_gradient).norm(dim=1)
        chance = (energy - its_energy + (there - back) / (4 * args.alpha)).exp()
        z = torch.where((torch.rand(len(z)) < chance)[:, None], proposed, z).detach()
    return z
