"""The two kinds of step, and what is saved."""

import os

import losses
import torch
import utils


def GAN_training_function(
    G, D, GD, z_, y_, ema, state_dict, config,
):  # fmt: skip
    def train(x, y):
        xs, ys = (iter(torch.split(part, config["batch_size"])) for part in (x, y))
        for _ in range(config["num_D_steps"]):
            D.optim.zero_grad()
            for _ in range(config["num_D_accumulations"]):
                z_.sample_()
                y_.sample_()
                latent = z_[: config["batch_size"]], y_[: config["batch_size"]]
                scores = GD(*latent, next(xs), next(ys), train_G=False, split_D=config["split_D"])
                (sum(losses.discriminator_loss(*scores)) / config["num_D_accumulations"]).backward()
            D.optim.step()
        G.optim.zero_grad()
        for _ in range(config["num_G_accumulations"]):
            z_.sample_()
            y_.sample_()
            scores = GD(z_, y_, train_G=True, split_D=config["split_D"])
            loss = losses.generator_loss(scores) / config["num_G_accumulations"]
            loss.backward()
        G.optim.step()
        return {"G_loss": loss.item()}

    return train


def save_and_sample(G, D, state_dict, config, experiment_name):
    utils.save_weights(G, D, state_dict, config["weights_root"], experiment_name)
    with torch.no_grad():
        z, y = utils.prepare_z_y(4, G.dim_z, config["n_classes"], device="cuda")
        images = G(z, G.shared(y)).to("cpu")
    os.makedirs(os.path.join("samples", experiment_name), exist_ok=True)
    torch.save(images, os.path.join("samples", experiment_name, f"{state_dict['itr']}.pt"))
