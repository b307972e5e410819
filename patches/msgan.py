"""HelenMao/MSGAN: one repository of several trainers, each with two fakes a step of one condition.

Both go through the critic's call that is enclosed, and are ranked apart. The mode-seeking term is
made of the fakes themselves, and goes past it. The critic of DRIT sees a single image.
"""

from topk_plugin import Enclose, Insert, Patch, Place, Replace

DCGAN, PIX2PIX, DRIT = (f"{kind}-Mode-Seeking" for kind in ("DCGAN", "Pix2Pix", "DRIT"))
TRAIN, MODEL, OPTIONS = (f"{DCGAN}/{name}.py" for name in ("train", "model", "options"))
P_TRAIN, P_MODEL = f"{PIX2PIX}/train.py", f"{PIX2PIX}/models/pix2pix_model.py"
P_OPTIONS = f"{PIX2PIX}/options/base_options.py"

PARSED = [
    Place(f"{kind}/options.py", "TrainOptions.parse", "self.parser.parse_args", 1, 1, digest)
    for kind, digest in ((DCGAN, "067246579abc"), (DRIT, "067246579abc"))
]
ON = "_.to({} if torch.cuda.is_available() else 'cpu')"
WHY = "the DRIT variant takes one image of a batch, so its critics score a single sample and k is 1"
STEPS = "* (dataset_size // opt.batch_size)"  # a batch that is not full is skipped

PATCH = Patch(
    commit="e386c25",
    digests={TRAIN: "8cc859e210ae", MODEL: "671fa7390cb2", P_MODEL: "c259ede6e292"},
    flags=(
        *(Insert(place, "topk.add_arguments(self.parser)", "before") for place in PARSED),
        *(Insert(place, "topk.start(self.opt, 'msgan')") for place in PARSED),
        Insert(
            Place(
                P_OPTIONS, "BaseOptions.gather_options", "parser.parse_args", digest="4b21533a3d07"
            ),
            "topk.add_arguments(parser)",
            "before",
        ),
        Insert(
            Place(P_OPTIONS, "BaseOptions.parse", "self.gather_options", digest="16fd6efd78a4"),
            "topk.start(opt, 'msgan')",
        ),
    ),
    topk=(
        Enclose(Place(MODEL, "CDCGAN.backward_G", "netD.forward", digest="72f74706eb15")),
        Enclose(Place(P_MODEL, "Pix2PixModel.backward_G_GAN", "netD", digest="f446b5060da8")),
        Insert(Place(TRAIN, "main", "CDCGAN", digest="bc2c95c7f477"), "topk.keep_record(model.D)"),
        Insert(
            Place(TRAIN, "main", "for", 1, 2, digest="c7a2c3859244"),
            "topk.reach_epoch(ep0, total_it)",
            "before",
        ),
        Insert(
            Place(TRAIN, "main", "saver.write_img", digest="e131d45560a4"),  # after the pass
            "topk.reach_epoch(ep + 1, total_it)",
            "before",
        ),
        Insert(
            Place(P_TRAIN, "", "for", 1, 2, digest="92df5d2ed11f"),
            f"topk.reach_epoch(opt.epoch_count - 1, (opt.epoch_count - 1) {STEPS})",
            "before",
        ),
        Insert(
            Place(P_TRAIN, "", "model.update_learning_rate", digest="a41b33946012"),
            f"topk.reach_epoch(epoch, epoch {STEPS})",
        ),
        Insert(
            Place(f"{DRIT}/train.py", "main", "parser.parse", digest="9344577540dd"),
            f"topk.refuse({WHY!r})",
        ),
    ),
    modern=(
        Replace(TRAIN, "_.cuda(opts.gpu)", ON.format("opts.gpu")),
        Replace(MODEL, "_.cuda(self.gpu)", ON.format("self.gpu")),
        Replace(
            MODEL,
            "torch.cuda.FloatTensor(batchSize, nz)",
            "torch.empty(batchSize, nz, device=self.G.deconv1.weight.device)",
        ),
        Replace(
            f"{PIX2PIX}/util/visualizer.py",
            "from scipy.misc import imresize",
            "from PIL import Image; imresize = lambda image, size, interp: "
            "np.array(Image.fromarray(image).resize(size[::-1], Image.BICUBIC))",
        ),
    ),
)
