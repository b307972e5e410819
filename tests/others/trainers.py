"""Trainings by others than PyTorch-GAN: what is typed, what is found, and top-k by hand.

Where a repository has networks, losses or a trainer, and no script that small data and a CPU
suffice for, the script is one of ours, in ``loops``, which only puts them together.
"""

from __future__ import annotations

from others import data
from others.rows import Origin, Row, Wrap

IGNITE = Origin("pytorch/ignite", "de08e799cfb55a6cf4aa778575d6bad725385453")
LIGHTNING = Origin(
    "Lightning-AI/pytorch-lightning", "7f0c3436cd3f6ad3753125672024fc415cbcb414", ("lightning",)
)
ACCELERATE = Origin("accelerate", "1.15.0", ("accelerate",))
FASTAI = Origin("fastai", "2.8.12", ("fastai", "fastcore", "fastprogress", "pandas"))
VEGANS = Origin("vegans", "0.4.0", ("vegans",))
R3GAN = Origin("brownvc/R3GAN", "19a7ddf463fbac2bd39b4c1c73d63f1c441c7403")
BASICSR = Origin(
    "XPixelGroup/BasicSR", "8d56e3a045f9fb3e1d8872f92ee4a4f07f886b0a",
    ("cv2", "addict", "lmdb", "skimage"),
)  # fmt: skip
TAMING = Origin(
    "CompVis/taming-transformers", "3ba01b241669f5ade541ce990f7650a3b8f65318", ("einops",)
)
DDGAN = Origin("NVlabs/denoising-diffusion-gan", "6818ded6443e10ab69c7864745457ce391d4d883")
CUT = Origin(
    "taesungp/contrastive-unpaired-translation", "b3ac297708dfb6f7589d04662277e53c0d579c27",
    ("dominate",),
)  # fmt: skip
HIFIGAN = Origin(
    "jik876/hifi-gan", "4769534d45265d52a904b850da5a622601885777", ("librosa", "soundfile")
)
REALESRGAN = Origin(
    "xinntao/Real-ESRGAN", "a4abfb2979a7bbff3f69f58f58ae324608821e27", ("basicsr", "cv2")
)

DMD2 = Origin(
    "tianweiy/DMD2", "8d8fa55633d47cfb81bbc7a892e7248f9518763f", ("accelerate", "diffusers", "lmdb")
)
VOCOS = Origin(
    "gemelo-ai/vocos", "c859e3b7b534f3776a357983029d34170ddd6fc3", ("torchaudio", "einops")
)
DAC = Origin(
    "descriptinc/descript-audio-codec", "c7cfc5d2647e26471dc394f95846a0830e7bec34",
    ("audiotools", "argbind", "einops"),
)  # fmt: skip
VITS = Origin("jaywalnut310/vits", "2e561ba58618d021b5b8323d3765880f7e0ecfdb")
DIFFUSERS = Origin(
    "huggingface/diffusers", "58eb52c0803ea9af3abec60841c2a093bdf1f951", ("accelerate", "diffusers")
)
CTGAN = Origin("ctgan", "0.12.1", ("ctgan", "rdt", "pandas"))
MONAI = Origin("monai", "1.6.1", ("monai", "ignite"))
PYTHAE = Origin("pythae", "0.1.2", ("pythae", "cloudpickle", "imageio", "pydantic"))
STARGAN = Origin("clovaai/stargan-v2", "875b70a150609e8a678ed8482562e7074cdce7e5", ("munch",))
GAN_ZOO = Origin("facebookresearch/pytorch_GAN_zoo", "b75dee40918caabb4fe7ec561522717bf096a8cb")
PIX2PIXHD = Origin("NVIDIA/pix2pixHD", "14b3b3c7fff413086e3b58df52096f16b6891172", ("dominate",))
SPADE = Origin("NVlabs/SPADE", "fecacc920c1367a038995c45a39c15f6521ca64f", ("dominate", "dill"))
AUDIOCRAFT = Origin(
    "facebookresearch/audiocraft",
    "896ec7c47f5e5d1e5aa1e4b260c4405328bf009d",
    ("einops", "julius", "num2words", "omegaconf", "flashy", "dora", "treetable"),
)
TIMEGAN = Origin("birdx0810/timegan-pytorch", "fb44aab7493ec21306ef968964a925d8c74382f4")
MOLGAN = Origin("yongqyu/MolGAN-pytorch", "8a22b864c3c9b7118c9317b57442045c524c1d81")
DEEPINV = Origin("deepinv", "0.5.0", ("deepinv", "natsort", "requests"))
AFTER_A_TRIAL = "max(0, by_hand_passes('call', 1) - 1) // 4"  # one call, before the four of a pass
SCORED = Wrap(
    "self.discriminator(z)", heads=("embedding",), form="input",
    file="pythae/models/adversarial_ae/adversarial_ae_model.py",
)  # fmt: skip
PACKED = Wrap("discriminator(torch.cat([fakeact, c1], dim=1))", file="ctgan/synthesizers/ctgan.py")
ONE = Wrap("self.predict(x=fake_images)", file="vegans/models/unconditional/AbstractGAN1v1.py")


def vegans(kind: str, *wraps: Wrap, **more: str) -> Row:
    """One of vegans' GANs: what it predicts of generated samples, in the class's own file."""
    more = {
        "found": "vegans.utils.networks:Adversary",
        "critic": "vegans.utils.networks:Adversary",
    } | more
    return Row(
        f"vegans-{kind}", kind, data.array(8), wraps, script="loops/vegans_gan.py", origin=VEGANS,
        epoch=4, shims=("double", "old_iterators"), **more,
    )  # type: ignore[arg-type]  # fmt: skip


def basicsr(model: str, file: str, **more: str) -> Row:
    """One of BasicSR's models."""
    critic = "basicsr.archs.discriminator_arch:UNetDiscriminatorSN"
    return Row(
        f"basicsr-{model}", "-opt data/options.yml", data.super_resolution(model),
        (Wrap("self.net_d(self.output)", file=f"basicsr/models/{file}.py"),),
        critic, critic, script="loops/basicsr_train.py", origin=BASICSR, epoch=4,
        shims=("double", "basicsr"), **more,
    )  # type: ignore[arg-type]  # fmt: skip


def unpaired(model: str, script: str, *expressions: str) -> Row:
    """A model of junyanz/pytorch-CycleGAN-and-pix2pix, which CUT has, too."""
    critic, file = "models.networks:NLayerDiscriminator", f"models/{model}_model.py"
    wraps = tuple(Wrap(expression, file=file) for expression in expressions)
    return Row(
        f"unpaired-{model}",
        f"--dataroot data/images --checkpoints_dir out --name x --model {model} --gpu_ids -1"
        " --batch_size 4 --load_size 36 --crop_size 32 --ngf 4 --ndf 4 --netG resnet_6blocks"
        " --n_epochs 2 --n_epochs_decay 2 --num_threads 0 --display_id 0 --no_html",
        data.unaligned, wraps, critic, critic, script=script, origin=CUT,
        epoch="self.schedulers[0].last_epoch",
    )  # fmt: skip


ROWS = [
    Row(
        "ignite-dcgan",
        "--dataset folder --dataroot data/images --workers 0 --batch-size 8 --epochs 4 --z-dim 8"
        " --g-filters 8 --d-filters 8 --no-cuda --seed 1 --output-dir out",
        data.folder_of_images, (Wrap("netD(fake)"),), script="examples/gan/dcgan.py",
        origin=IGNITE, epoch="engine.state.epoch - 1",
    ),
    Row(
        "lightning-gan", "--latent_dim 8", data.lightning_mnist,
        (Wrap("self.discriminator(self(z))"),), origin=LIGHTNING, epoch="self.current_epoch",
        script="examples/pytorch/domain_templates/generative_adversarial_net.py",
        shims=("lightning_example",),
    ),
    Row(
        "accelerate-accumulation", "", data.array(8), (Wrap("critic(fake)"),), "__main__:Critic",
        "__main__:Critic", script="loops/accelerated.py", origin=ACCELERATE, epoch=4,
    ),
    Row(
        "r3gan", "", data.array(16),
        (Wrap("self.Discriminator(Preprocessor(FakeSamples), Conditions)",
              file="R3GAN/Trainer.py"),),
        "training.networks:Discriminator", "training.networks:Discriminator",
        script="loops/r3gan.py", origin=R3GAN, epoch=4, shims=("double", "nvidia_ops"),
    ),
    basicsr("SRGANModel", "srgan_model"),
    basicsr("ESRGANModel", "esrgan_model"),
    unpaired(
        "cycle_gan", "loops/unpaired.py", "self.netD_A(self.fake_B)", "self.netD_B(self.fake_A)"
    ),
    Row(
        "taming-vqgan", "", data.array(16),
        (Wrap("self.discriminator(reconstructions.contiguous())",
              file="taming/modules/losses/vqperceptual.py"),),
        "taming.modules.losses.vqperceptual:VQLPIPSWithDiscriminator.discriminator",
        "taming.modules.discriminator.model:NLayerDiscriminator",
        script="loops/vqgan.py", origin=TAMING, epoch=4, shims=("double", "taming"),
    ),
    Row(
        "ddgan",
        "--dataset cifar10 --exp out --batch_size 8 --num_epoch 3 --nz 8 --num_channels_dae 8"
        " --ch_mult 1 1 --num_res_blocks 1 --z_emb_dim 8 --t_emb_dim 8 --ngf 4 --image_size 32",
        data.for_diffusion, (Wrap("netD(x_pos_sample, t, x_tp1.detach())", 2),),
        "score_sde.models.discriminator:Discriminator_small",
        "score_sde.models.discriminator:Discriminator_small",
        script="train_ddgan.py", origin=DDGAN,
        shims=("double", "cpu", "nvidia_ops", "ddp_on_cpu", "cifar10"),
    ),
    Row(
        "hifigan",
        "--config data/small.json --input_wavs_dir data --input_training_file data/train.txt"
        " --input_validation_file data/val.txt --training_epochs 4 --stdout_interval 1"
        " --validation_interval 100000 --summary_interval 100000 --checkpoint_path out",
        data.tones,
        (Wrap("y_df_hat_g", 2, heads=(0, 1, 2, 3, 4)), Wrap("y_ds_hat_g", 2, heads=(0, 1, 2))),
        "models:MultiPeriodDiscriminator=1.0,1.1,1.2,1.3,1.4,"
        " models:MultiScaleDiscriminator=1.0,1.1,1.2", "",
        script="train.py", origin=HIFIGAN, shims=("double", "cpu", "audio", "thin_audio"),
        flags="--find",  # there is an adapter
    ),
    Row(
        "realesrgan", "-opt data/options.yml", data.super_resolution("RealESRGANModel"),
        (Wrap("self.net_d(self.output)", file="realesrgan/models/realesrgan_model.py"),),
        "realesrgan.archs.discriminator_arch:UNetDiscriminatorSN",
        "realesrgan.archs.discriminator_arch:UNetDiscriminatorSN",
        script="loops/realesrgan_train.py", origin=REALESRGAN, epoch=4,
        shims=("double", "cpu", "basicsr"),
    ),
    Row(
        "dmd2",
        "--model_id data/edm.pkl --output_path out --real_image_path data/array.npy --batch_size 8"
        " --resolution 16 --label_dim 10 --train_iters 17 --num_workers 0 --no_save"
        " --wandb_name x --warmup_step 0 --generator_lr 1e-3 --guidance_lr 1e-3"
        " --initialie_generator --gan_classifier --gen_cls_loss_weight 3e-3 --cls_loss_weight 1e-2",
        data.array(16),
        (Wrap("self.compute_cls_logits(image=fake_image, label=fake_labels)",
              file="main/edm/edm_guidance.py"),),
        "main.edm.edm_guidance:EDMGuidance.cls_pred_branch", "",
        script="loops/dmd2.py", origin=DMD2, epoch=4, shims=("double", "dmd2"),
    ),
    Row(
        "vocos", "", data.waves,
        (Wrap("gen_score_mp", 2, heads=(0, 1, 2, 3, 4), file="vocos/experiment.py"),
         Wrap("gen_score_mrd", 2, heads=(0, 1, 2), file="vocos/experiment.py")),
        "vocos.discriminators:MultiResolutionDiscriminator=1.0,1.1,1.2",  # the other a step later
        "vocos.discriminators:MultiPeriodDiscriminator=1.0,1.1,1.2,1.3,1.4"
        " vocos.discriminators:MultiResolutionDiscriminator=1.0,1.1,1.2",
        script="loops/vocos_experiment.py", origin=VOCOS, epoch=3,
        shims=("double", "vocos", "thin_audio"),
    ),
    Row(
        "dac", "", data.waves, (Wrap("d_fake", 3, form="last", file="dac/nn/loss.py"),),
        "dac.model.discriminator:Discriminator", "dac.model.discriminator:Discriminator",
        script="loops/dac_codec.py", origin=DAC, epoch=3, shims=("double", "thin_audio"),
    ),
    Row(  # reals and fakes in one call, four lists
        "vits", "", data.waves,
        (Wrap("y_d_hat_g", 2, heads=(0, 1, 2, 3, 4, 5), file="train.py"),),
        "models:MultiPeriodDiscriminator=1.0,1.1,1.2,1.3,1.4,1.5",
        "models:MultiPeriodDiscriminator=1.0,1.1,1.2,1.3,1.4,1.5",
        script="loops/vits_train.py", origin=VITS, epoch=3, shims=("double", "cpu", "vits"),
    ),
    Row(  # the networks take turns, batch by batch
        "diffusers-vqgan",
        "--model_config_name_or_path data/generator --train_data_dir data/images --resolution 32"
        " --discriminator_config_name_or_path data/critic --timm_model_layers first"
        " --train_batch_size 4 --max_train_steps 32 --learning_rate 1e-3"
        " --discr_learning_rate 1e-3 --seed 1 --output_dir out",
        data.for_vqgan, (Wrap("discriminator(fmap)"),), "discriminator:Discriminator",
        "discriminator:Discriminator", script="examples/vqgan/train_vqgan.py", origin=DIFFUSERS,
        epoch="epoch", shims=("double", "diffusers_vqgan"),
    ),
    Row(  # its critic scores packs of rows
        "ctgan", "", data.array(8), (PACKED,),
        "ctgan.synthesizers.ctgan:Discriminator", "ctgan.synthesizers.ctgan:Discriminator",
        script="loops/ctgan_table.py", origin=CTGAN, epoch=4, flags="--every 4", shims=("double",),
    ),
    Row(
        "monai-gan", "", data.array(8), (Wrap("D(fake)"),),
        "monai.networks.nets.classifier:Discriminator",
        "monai.networks.nets.classifier:Discriminator",
        script="loops/monai_gan.py", origin=MONAI, epoch=4, shims=("double",),
    ),
    Row(  # its critic returns a dict of a class of its own
        "pythae-aae", "", data.array(8), (SCORED,),
        "pythae.models.nn.default_architectures:Discriminator_MLP",
        "pythae.models.nn.default_architectures:Discriminator_MLP",
        script="loops/pythae_aae.py", origin=PYTHAE, epoch=AFTER_A_TRIAL, shims=("double",),
    ),
    Row(  # two generator steps a batch, whose optimizer steps beside others in the first alone
        "stargan-v2",
        "--mode train --img_size 32 --latent_dim 4 --style_dim 4 --w_hpf 0 --total_iters 16"
        " --num_workers 0 --val_batch_size 8 --train_img_dir data/domains/train"
        " --val_img_dir data/domains/test --sample_dir out --checkpoint_dir out",
        data.domains, (Wrap("nets.discriminator(x_fake, y_trg)", 2, file="core/solver.py"),),
        "core.model:Discriminator", "core.model:Discriminator",
        script="main.py", origin=STARGAN, epoch=8, shims=("double", "cpu", "stargan_v2"),
    ),
    Row(  # both networks grow, and have new optimizers each time
        "gan-zoo-progressive", "PGAN -c data/options.json -d out -n x --no_vis --restart",
        data.progressive, (Wrap("predFakeD", 3, file="models/base_GAN.py"),),
        "models.networks.progressive_conv_net:DNet", "models.networks.progressive_conv_net:DNet",
        script="train.py", origin=GAN_ZOO, epoch=2,
        shims=("double", "cpu", "int_betas", "unwrapped"),
    ),
    Row(  # of the lists that its critic returns, the last ones are scores
        "pix2pixhd",
        "--name x --checkpoints_dir out --batchSize 8 --no_instance --label_nc 3 --ngf 4 --ndf 4"
        " --no_vgg_loss --niter 2 --niter_decay 2 --no_html --save_epoch_freq 9 --gpu_ids -1"
        " --dataroot data --resize_or_crop none --n_downsample_global 2 --n_blocks_global 1"
        " --n_layers_D 2 --nThreads 0",
        data.labelled, (Wrap("pred_fake", form="last", file="models/pix2pixHD_model.py"),),
        "models.networks:MultiscaleDiscriminator", "models.networks:MultiscaleDiscriminator",
        script="train.py", origin=PIX2PIXHD, epoch=4,
        shims=("double", "cpu", "pix2pixhd", "unwrapped"),
    ),
    Row(  # fakes and reals in one batch, also in the generator's step
        "spade",
        "--name x --checkpoints_dir out --batchSize 8 --no_instance --label_nc 3 --ngf 2 --ndf 4"
        " --no_vgg_loss --niter 4 --no_html --save_epoch_freq 9 --gpu_ids -1 --dataset_mode custom"
        " --label_dir data/train_label --image_dir data/train_img --no_pairing_check"
        " --load_size 32 --crop_size 32 --norm_G spectralspadebatch3x3 --n_layers_D 3"
        " --num_upsampling_layers normal",
        data.labelled, (Wrap("pred_fake", form="last", file="models/pix2pix_model.py"),),
        "models.networks.discriminator:MultiscaleDiscriminator",
        "models.networks.discriminator:MultiscaleDiscriminator",
        script="train.py", origin=SPADE, epoch=4,
        shims=("double", "cpu", "pix2pixhd", "unwrapped", "spade"),
    ),
    Row(  # its losses are balanced by their gradients at the samples
        "encodec", "", data.waves,
        (Wrap("all_logits_fake_is_fake", 4, heads=(0, 1),
              file="audiocraft/adversarial/losses.py"),),
        "audiocraft.adversarial.discriminators.msstftd:MultiScaleSTFTDiscriminator",
        "audiocraft.adversarial.discriminators.msstftd:MultiScaleSTFTDiscriminator",
        script="loops/encodec.py", origin=AUDIOCRAFT, epoch=3, shims=("double", "audiocraft"),
    ),
    Row(  # its critic scores each time of a series, with two calls a step
        "timegan", "", data.array(8),
        (Wrap("self.discriminator(H_hat, T)", 2, file="models/timegan.py"),
         Wrap("self.discriminator(E_hat, T)", 2, file="models/timegan.py")),
        "models.timegan:DiscriminatorNetwork=0", "models.timegan:DiscriminatorNetwork=0",
        script="loops/timegan.py", origin=TIMEGAN, epoch=8, shims=("double",),
    ),
    Row(  # a network that estimates rewards is beside its critic, and the generator's optimizer's
        "molgan", "", data.array(8),
        (Wrap("self.D(edges_hat, None, nodes_hat)", 2, heads=(0,), file="solver.py"),),
        "models:Discriminator", "models:Discriminator", script="loops/molgan.py", origin=MOLGAN,
        epoch=4, flags="--every 4", shims=("double",),
    ),
    Row(  # an object of its own holds both optimizers
        "deepinv-gan", "", data.array(16),
        (Wrap("D(fake)", file="deepinv/loss/adversarial/base.py"),),
        "deepinv.models.gan:PatchGANDiscriminator", "deepinv.models.gan:PatchGANDiscriminator",
        script="loops/deepinv_gan.py", origin=DEEPINV, epoch=4, shims=("double",),
    ),
    Row(
        "fastai-gan", "", data.array(8),
        (Wrap("self.gan_model.critic(output)", file="fastai/vision/gan.py"),),
        critic="__main__:Critic", asks="no critic was found",
        script="loops/fastai_gan.py", origin=FASTAI, epoch=8,
    ),
    vegans("VanillaGAN", ONE),
    vegans("LSGAN", ONE),
    vegans("KLGAN", ONE),
    vegans("WassersteinGAN", ONE._replace(low=True)),
    vegans("WassersteinGANGP", ONE._replace(low=True)),
    vegans("InfoGAN", ONE._replace(file="vegans/models/unconditional/InfoGAN.py")),
    vegans("LRGAN", ONE._replace(file="vegans/models/unconditional/LRGAN.py")),
    vegans(
        "AAE",
        Wrap("self.predict(x=encoded_output)", file="vegans/models/unconditional/AAE.py"),
    ),
    vegans("EBGAN", asks="it returns an image", found="", critic=""),
]  # fmt: skip

STOPPED = {
    "junyanz/pytorch-CycleGAN-and-pix2pix": "three gigabytes; its CycleGAN is run as"
    " taesungp/contrastive-unpaired-translation has it",
    "open-mmlab/mmgeneration": "needs mmcv 1.x, which does not build with today's setuptools",
    "vegans' VAEGAN and BicycleGAN": "an encoder's loss goes through the critic, too; whether its"
    " rows are dropped is a choice",
    "CUT itself": "at this size its weights are not numbers, also without top-k",
}  # what was tried, and what stopped it
