"""ajbrock/BigGAN-PyTorch: the loop is in train.py, the two kinds of step in train_fns.py.

Epochs are passes over the data, counted by ``itr``, which checkpoints restore; ``epoch`` stays
behind after some of them, and means nothing with the multi-epoch sampler. That sampler delivers
the whole data set in a pass, the other loader its full batches.

Not among the modern rules: sample sheets with --parallel where there is no accelerator.
"""

from topk_plugin import Argument, Enclose, Insert, Patch, Place, Replace

TRAIN, STEPS, UTILS, INCEPTION = "train.py", "train_fns.py", "utils.py", "inception_utils.py"

DEVICE = "'cuda' if torch.cuda.is_available() else 'cpu'"
SET_DEVICE = f"device = {DEVICE}"
PASS_SIZE = (
    "pass_size = len(loaders[0].dataset) if config['use_multiepoch_sampler'] "
    "else len(loaders[0]) * D_batch_size or 1"
)
# before the first step, and after each one, so that a checkpoint's record knows of it
REACH = "topk.reach_epoch(state_dict['itr'] * D_batch_size // pass_size, state_dict['itr'])"

PATCH = Patch(
    commit="9845943",
    digests={TRAIN: "8529d151aa66", STEPS: "4d8c35c95c85"},
    flags=(
        Insert(
            Place(TRAIN, "main", "parser.parse_args", digest="9e8bf2eafe7a"),
            "topk.add_arguments(parser)",
            "before",
        ),
        Insert(
            Place(TRAIN, "main", "parser.parse_args", digest="9e8bf2eafe7a"),
            "topk.start(config, 'biggan_pytorch')",
        ),
    ),
    topk=(
        Insert(Place(TRAIN, "run", "model.G_D", digest="70d22868ce6c"), "topk.keep_record(D)"),
        Insert(Place(TRAIN, "run", "utils.get_data_loaders", digest="c73dcb2bec14"), PASS_SIZE),
        Insert(Place(TRAIN, "run", "utils.get_data_loaders", digest="c73dcb2bec14"), REACH),
        Enclose(Place(STEPS, "GAN_training_function.train", "GD", 2, 2, digest="c9132471d466")),
        Insert(Place(TRAIN, "run", "train", digest="a85ea71bb7f0"), REACH),
    ),
    modern=(
        Replace(TRAIN, "'cuda'", DEVICE, "run"),
        Insert(Place(STEPS, "", "import"), SET_DEVICE),
        Insert(Place(UTILS, "prepare_parser", "def"), SET_DEVICE, "before"),
        Insert(Place(INCEPTION, "", "import"), SET_DEVICE),
        Replace(STEPS, "'cuda'", "device"),
        Replace(UTILS, "'cuda'", "device"),
        Replace(INCEPTION, "_.cuda()", "_.to(device)"),
        # what is computed from the latent vectors is a plain tensor, as before torch 1.7
        Insert(
            Place(UTILS, "Distribution", "def"),
            "__torch_function__ = torch._C._disabled_torch_function_impl",
            "last",
        ),
        # the settings in a checkpoint hold modules
        Argument(UTILS, "torch.load", "weights_only=False", "load_weights"),
    ),
)
