"""The settings that the tests use."""

import argparse


class TrainOptions:
    def __init__(self):
        self.parser = argparse.ArgumentParser()
        self.parser.add_argument("--dataroot")

    def parse(self):
        self.opt = self.parser.parse_args()
        return self.opt
