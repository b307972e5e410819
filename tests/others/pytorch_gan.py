"""The scripts of eriklindernoren/PyTorch-GAN: what is typed, what is found, and top-k by hand."""

from __future__ import annotations

from others import data
from others.rows import Origin, Row, Wrap

PYTORCH_GAN = Origin(
    "eriklindernoren/PyTorch-GAN", "36d3c77e5ff20ebe0aeefd322326a134a279b93e", own_folder=True
)


def digits(name: str, *wraps: Wrap, **more: str) -> Row:
    """A script that trains on MNIST."""
    arguments = "--n_epochs 4 --batch_size 8 " + more.pop("arguments", "")
    return Row(name, arguments.strip(), data.mnist, wraps, **more)  # type: ignore[arg-type]


def located(row: Row) -> Row:
    """With where its script is."""
    script = f"implementations/{row.script or f'{row.name}/{row.name}'}.py"
    return row._replace(script=script, origin=PYTORCH_GAN, shims=("pytorch_gan",))


ONE = Wrap("discriminator(gen_imgs)")
EPOCHS = "--n_epochs 4 --batch_size 4 --n_cpu 0"
FACES = f"{EPOCHS} --dataset_name faces"
PAIRS = f"{EPOCHS} --dataset_name pairs"
DOMAINS = f"{EPOCHS} --dataset_name domains"
DECAY = "--decay_epoch 2"
IMPORTED = {"found": "models:Discriminator", "critic": "models:Discriminator"}
TWO = Wrap("discriminator(gen_imgs)", 2)

SCRIPTS = [
    digits("gan", ONE),
    digits("dcgan", ONE),
    digits("lsgan", ONE),
    digits("wgan", ONE, arguments="--n_critic 2"),
    digits("wgan_gp", Wrap("discriminator(fake_imgs)", 2), arguments="--n_critic 2"),
    digits("wgan_div", Wrap("discriminator(fake_imgs)", 2), arguments="--n_critic 2"),
    digits("cgan", Wrap("discriminator(gen_imgs, gen_labels)")),
    digits("acgan", Wrap("discriminator(gen_imgs)", heads=(0,))),
    digits("sgan", Wrap("discriminator(gen_imgs)", heads=(0,))),
    digits("infogan", Wrap("discriminator(gen_imgs)", heads=(0,))),
    digits("aae", Wrap("discriminator(encoded_imgs)")),
    digits("bgan", ONE),
    digits("dragan", ONE),
    digits("relativistic_gan", TWO),
    digits("softmax_gan", Wrap("discriminator(gen_imgs)", low=True, form="input")),
    digits(
        "cluster_gan", Wrap("D_gen", 2), script="cluster_gan/clustergan",
        arguments="--n_critic 2", found="__main__:Discriminator_CNN",
        critic="__main__:Discriminator_CNN",
    ),
    digits(
        "cluster_gan-wasserstein", Wrap("D_gen", low=True), script="cluster_gan/clustergan",
        arguments="--n_critic 2 --wass_flag", found="__main__:Discriminator_CNN",
        critic="__main__:Discriminator_CNN",
    ),
    digits("began", asks="it returns an image", found="", critic=""),
    digits("ebgan", asks="it returns an image", found="", critic=""),
    Row(
        "cogan", "--n_epochs 4 --batch_size 8", data.mnist_m,
        (Wrap("coupled_discriminators(gen_imgs1, gen_imgs2)", heads=(0, 1)),),
        found="__main__:CoupledDiscriminators", critic="__main__:CoupledDiscriminators=0,1",
    ),
    Row(
        "pixelda", "--n_epochs 4 --batch_size 8", data.mnist_m, (Wrap("discriminator(fake_B)"),),
        thin=16,
    ),
    Row(
        "pix2pix", f"{PAIRS} {DECAY}", data.pairs, (Wrap("discriminator(fake_B, real_A)"),),
        thin=16, **IMPORTED,
    ),
    Row(
        "cyclegan",
        f"{DOMAINS} {DECAY} --img_height 32 --img_width 32 --n_residual_blocks 1",
        data.domains, (Wrap("D_B(fake_B)"), Wrap("D_A(fake_A)")), thin=16, **IMPORTED,
    ),
    Row(
        "discogan", PAIRS, data.pairs, (Wrap("D_B(fake_B)"), Wrap("D_A(fake_A)")), thin=16,
        **IMPORTED,
    ),
    Row(
        "dualgan", f"{PAIRS} --n_critic 2", data.pairs,
        (Wrap("D_A(fake_A)", 2), Wrap("D_B(fake_B)", 2)), thin=16, **IMPORTED,
    ),
    Row(
        "unit", f"{DOMAINS} {DECAY} --img_height 32 --img_width 32 --dim 4", data.domains,
        (Wrap("D1(fake_X1)"), Wrap("D2(fake_X2)")), thin=16, **IMPORTED,
    ),
    Row(
        "munit", f"{PAIRS} --n_epochs 3 {DECAY} --dim 2 --n_residual 1", data.pairs,
        (
            Wrap("D1.compute_loss(X21, valid)", heads=(0, 1, 2), form="inside"),
            Wrap("D2.compute_loss(X12, valid)", heads=(0, 1, 2), form="inside"),
        ),
        thin=16, found="models:MultiDiscriminator", critic="models:MultiDiscriminator=0,1,2",
    ),
    Row(
        "bicyclegan", PAIRS, data.pairs,
        (
            Wrap("D_VAE.compute_loss(fake_B, valid)", heads=(0, 1, 2), form="inside"),
            Wrap("D_LR.compute_loss(_fake_B, valid)", heads=(0, 1, 2), form="inside"),
        ),
        thin=16, found="models:MultiDiscriminator", critic="models:MultiDiscriminator=0,1,2",
    ),
    Row("ccgan", FACES, data.faces, (ONE,), thin=16, **IMPORTED),
    Row(
        "context_encoder", FACES, data.many_faces, (Wrap("discriminator(gen_parts)"),), thin=16,
        **IMPORTED,
    ),
    Row(
        "srgan", f"{FACES} {DECAY} --hr_height 32 --hr_width 32", data.faces,
        (Wrap("discriminator(gen_hr)"),), thin=16, **IMPORTED,
    ),
    Row(
        "esrgan",
        f"{FACES} {DECAY} --hr_height 32 --hr_width 32 --residual_blocks 1 --warmup_batches 2",
        data.faces, (Wrap("discriminator(gen_hr)"),), thin=16, **IMPORTED,
    ),
    Row(
        "esrgan-warmup",
        f"{FACES} {DECAY} --hr_height 32 --hr_width 32 --residual_blocks 1 --warmup_batches 4",
        data.faces, (Wrap("discriminator(gen_hr)"),), thin=16, flags="--passes all",
        script="esrgan/esrgan", asks="which went ungated though k is below", **IMPORTED,
    ),
    Row(
        "stargan",
        f"{FACES} --img_height 64 --img_width 64 --residual_blocks 1 --n_critic 2",
        data.celeba, (Wrap("discriminator(gen_imgs)", heads=(0,)),), thin=16, **IMPORTED,
    ),
]  # fmt: skip

ROWS = [located(row) for row in SCRIPTS]
