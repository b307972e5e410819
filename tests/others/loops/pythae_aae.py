"""``python pythae_aae.py``: four epochs of pythae's adversarial autoencoder on digits."""

import numpy as np
from pythae.models import Adversarial_AE, Adversarial_AE_Config
from pythae.pipelines import TrainingPipeline
from pythae.trainers import AdversarialTrainerConfig

images = np.load("data/array.npy")[:, :1]
model = Adversarial_AE(Adversarial_AE_Config(input_dim=images.shape[1:], latent_dim=3))
rates = {"autoencoder_learning_rate": 1e-3, "discriminator_learning_rate": 1e-3}
settings = {"output_dir": "trained", "num_epochs": 4, "per_device_train_batch_size": 8}
TrainingPipeline(model=model, training_config=AdversarialTrainerConfig(**settings, **rates))(images)
