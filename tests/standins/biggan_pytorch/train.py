"""The loop over the data."""

import inception_utils
import torch
import train_fns
import utils
from torch import nn


def run(config):
    device = "cuda"
    config.update(n_classes=utils.nclass_dict[config["dataset"]], G_activation=nn.ReLU())
    torch.manual_seed(config["seed"])
    model = __import__(config["model"])
    experiment_name = config["experiment_name"] or utils.name_from_config(config)
    G, D = model.Generator(**config).to(device), model.Discriminator(**config).to(device)
    GD = model.G_D(G, D)
    state_dict = {"itr": 0, "epoch": 0, "config": config}
    if config["resume"]:
        utils.load_weights(G, D, state_dict, config["weights_root"], experiment_name)
    if config["parallel"]:
        GD = nn.DataParallel(GD)
    D_batch_size = config["batch_size"] * config["num_D_steps"] * config["num_D_accumulations"]
    loaders = utils.get_data_loaders(
        **config | {"batch_size": D_batch_size, "start_itr": state_dict["itr"]}
    )
    inception_utils.prepare_inception_metrics(config["dataset"], config["parallel"], True)
    batch = max(config["G_batch_size"], config["batch_size"])
    z_, y_ = utils.prepare_z_y(batch, G.dim_z, config["n_classes"], device=device)
    train = train_fns.GAN_training_function(G, D, GD, z_, y_, None, state_dict, config)
    for _ in range(state_dict["epoch"], config["num_epochs"]):
        for x, y in loaders[0]:
            state_dict["itr"] += 1
            metrics = train(x.to(device), y.to(device))
            if not state_dict["itr"] % config["save_every"]:
                print(metrics)
                train_fns.save_and_sample(G, D, state_dict, config, experiment_name)
        state_dict["epoch"] += 1


def main():
    parser = utils.prepare_parser()
    config = vars(parser.parse_args())
    run(config)


if __name__ == "__main__":
    main()
