"""The loop of junyanz/pytorch-CycleGAN-and-pix2pix's train.py, around its models."""

from data import create_dataset
from models import create_model
from options.train_options import TrainOptions

options = TrainOptions().parse()
options.amp = False  # is read, and has no argument
dataset = create_dataset(options)
model = create_model(options)
model.setup(options)
for _ in range(options.n_epochs + options.n_epochs_decay):
    for images in dataset:
        model.set_input(images)
        model.optimize_parameters()
    model.update_learning_rate()
