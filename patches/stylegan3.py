"""NVlabs/stylegan3: the loss is in one file, the loop that counts the images in another.

The critic is called for generated images in two phases, of the generator and of its own. Batches
are drawn without end, so the epochs go by ``cur_nimg``. Its snapshots are pickled networks, which
carry no record.
"""

from topk_plugin import Enclose, Insert, Patch, Place, Replace

LOSS, LOOP, TRAIN = "training/loss.py", "training/training_loop.py", "train.py"
OPERATORS = [f"torch_utils/ops/{name}_gradfix.py" for name in ("conv2d", "grid_sample")]
MAIN = Place(TRAIN, "", "main", digest="ea1a0f910230")
REACHED = "topk.reach_epoch(cur_nimg // len(training_set), cur_nimg // batch_size)"
HAS_CUDA = "torch.cuda.is_available()"

PATCH = Patch(
    commit="c233a91",
    digests={LOSS: "95cd1d2fb2db", LOOP: "85dc3b5b84f8"},
    flags=tuple(  # its own are click's, which needs no parser
        Insert(MAIN, line, "before")
        for line in (
            "import argparse, sys",
            "parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)",
            "topk.add_arguments(parser)",
            "args, sys.argv[1:] = parser.parse_known_args()",
            "topk.start(args, 'stylegan3')",
        )
    ),
    topk=(
        Enclose(
            Place(LOSS, "StyleGAN2Loss.accumulate_gradients", "self.run_D", 1, 3, "e59403a137be")
        ),
        Insert(Place(LOOP, "training_loop", "while", digest="96546f90b3d0"), REACHED, "first"),
        Insert(
            Place(LOOP, "training_loop", "stats_collector.update", digest="16dd42f6b448"), REACHED
        ),
    ),
    modern=(
        *(
            Replace(
                file,
                "from pkg_resources import parse_version",
                "from torch.torch_version import TorchVersion as parse_version",
            )
            for file in OPERATORS
        ),
        Replace(
            "dnnlib/util.py",
            "from distutils.util import strtobool",
            "strtobool = lambda word: word in ('y', 'yes', 't', 'true', 'on', '1')",
        ),
        Replace("torch_utils/misc.py", "super().__init__(dataset)", "super().__init__()"),
        Replace(TRAIN, "[0, 0.99]", "[0.0, 0.99]"),
        Replace(
            LOOP,
            "torch.device('cuda', rank)",
            f"torch.device('cuda', rank) if {HAS_CUDA} else torch.device('cpu')",
        ),
        Replace(
            LOOP,
            "torch.cuda.Event(enable_timing=True)",
            f"torch.cuda.Event(enable_timing=True) if {HAS_CUDA} else None",
        ),
        Replace(
            LOOP,
            "torch.cuda.reset_peak_memory_stats()",
            f"torch.cuda.reset_peak_memory_stats() if {HAS_CUDA} else None",
        ),
        Replace(LOOP, "_.pin_memory()", "_"),
    ),
)
