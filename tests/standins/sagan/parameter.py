"""The settings that the stand-in reads."""

import argparse


def get_parameters():
    parser = argparse.ArgumentParser()
    for name in ("dataset", "image_path", "adv_loss", "version", "model_save_path"):
        parser.add_argument(f"--{name}")
    for name in ("imsize", "batch_size", "z_dim", "g_conv_dim", "d_conv_dim", "log_step"):
        parser.add_argument(f"--{name}", type=int, default=1)
    parser.add_argument("--total_step", type=int)
    parser.add_argument("--pretrained_model", type=int)
    parser.add_argument("--parallel", type=lambda text: text == "True", default=False)
    return parser.parse_args()
