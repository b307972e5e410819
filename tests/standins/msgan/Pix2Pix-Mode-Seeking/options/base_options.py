"""The settings that the tests use."""

import argparse


class BaseOptions:
    def gather_options(self):
        parser = argparse.ArgumentParser()
        for name in ("dataroot", "name", "netG", "netD"):
            parser.add_argument(f"--{name}")
        for name in ("batch_size", "ngf", "ndf", "loadSize", "fineSize", "gpu_ids", "num_threads",
                     "niter", "niter_decay", "save_epoch_freq"):  # fmt: skip
            parser.add_argument(f"--{name}", type=int)
        parser.add_argument("--epoch_count", type=int, default=1)
        parser.add_argument("--continue_train", action="store_true")
        parser.add_argument("--no_html", action="store_true")
        return parser.parse_args()

    def parse(self):
        opt = self.gather_options()
        self.opt = opt
        return opt
