"""Four epochs of EnCodec on tones by audiocraft's own step, losses, balancer and critic."""

from types import SimpleNamespace as Settings

import numpy as np
import torch
from audiocraft.adversarial.discriminators.msstftd import MultiScaleSTFTDiscriminator
from audiocraft.adversarial.losses import (
    AdversarialLoss,
    FeatureMatchingLoss,
    get_adv_criterion,
    get_fake_criterion,
    get_real_criterion,
)
from audiocraft.losses.balancer import Balancer
from audiocraft.models.encodec import EncodecModel
from audiocraft.modules.seanet import SEANetDecoder, SEANetEncoder
from audiocraft.quantization import ResidualVectorQuantizer
from audiocraft.solvers.compression import CompressionSolver
from torch import nn
from torch.utils.data import DataLoader

waves = torch.from_numpy(np.load("data/waves.npy"))[:, None, :1024]
sizes = {"channels": 1, "dimension": 8, "n_filters": 4, "n_residual_layers": 1, "lstm": 0}
encoder, decoder = (kind(**sizes, ratios=[4, 2]) for kind in (SEANetEncoder, SEANetDecoder))
codes = ResidualVectorQuantizer(dimension=8, n_q=2, bins=32, decay=0.9)
model = EncodecModel(encoder, decoder, codes, 128, 1024, 1).train()
windows = {"n_ffts": [64, 128], "hop_lengths": [16, 32], "win_lengths": [64, 128]}
critic = MultiScaleSTFTDiscriminator(filters=4, **windows)
opt_model, opt_critic = (
    torch.optim.Adam(net.parameters(), 1e-3, betas=(0.5, 0.9)) for net in (model, critic)
)
adversary = AdversarialLoss(
    critic, opt_critic, loss=get_adv_criterion("hinge"), loss_real=get_real_criterion("hinge"),
    loss_fake=get_fake_criterion("hinge"), loss_feat=FeatureMatchingLoss(),
)  # fmt: skip
solver = Settings(
    device="cpu", model=model, optimizer=opt_model, is_training=True, rng=torch.Generator(),
    adv_losses=nn.ModuleDict({"stft": adversary}), aux_losses=nn.ModuleDict({"l1": nn.L1Loss()}),
    balancer=Balancer({"adv_stft": 4.0, "feat_stft": 4.0, "l1": 0.1}), info_losses={},
    cfg=Settings(adversarial=Settings(every=1), optim=Settings(max_norm=0)),
)  # fmt: skip
solver.rng.manual_seed(1)
for _ in range(4):
    for n, batch in enumerate(DataLoader(waves, batch_size=4, shuffle=True)):
        CompressionSolver.run_step(solver, n, batch, {})
