"""The settings that the tests use."""

import argparse


class TrainOptions:
    def __init__(self):
        self.parser = argparse.ArgumentParser()
        for name in ("dataroot", "resume"):
            self.parser.add_argument(f"--{name}")
        self.parser.add_argument("--result_dir", default="results")
        for name in ("batch_size", "nz", "n_ep", "model_save_freq", "gpu"):
            self.parser.add_argument(f"--{name}", type=int, default=0)
        self.parser.add_argument("--no_display_img", action="store_true")

    def parse(self):
        self.opt = self.parser.parse_args()
        return self.opt
