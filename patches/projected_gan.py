"""autonomousvision/projected-gan: StyleGAN3's loop; critics of another network's features.

A critic call returns (B, N), the logits of all critics and patches of an image side by side, which
have one ranking: by their mean. A run of the same name goes on from the snapshot in its folder, by
the count of images in it.
"""

from topk_plugin import Insert, Patch, Place, Replace

LOSS, LOOP, TRAIN = "training/loss.py", "training/training_loop.py", "train.py"
MAIN = Place(TRAIN, "", "main", digest="ea1a0f910230")
REACHED = "topk.reach_epoch(cur_nimg // len(training_set), cur_nimg // batch_size)"
HAS_CUDA = "torch.cuda.is_available()"

PATCH = Patch(
    commit="e1c246b",
    digests={LOSS: "17fb885a912d", LOOP: "74a670eb80af"},
    flags=tuple(  # its own are click's, which needs no parser
        Insert(MAIN, line, "before")
        for line in (
            "import argparse, sys",
            "parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)",
            "topk.add_arguments(parser)",
            "args, sys.argv[1:] = parser.parse_known_args()",
            "topk.start(args, 'projected_gan')",
        )
    ),
    topk=(
        Insert(
            Place(
                LOSS, "ProjectedGANLoss.accumulate_gradients", "self.run_D", 1, 3, "e59403a137be"
            ),
            "gen_logits = topk(gen_logits, [0])",
        ),
        Insert(Place(LOOP, "training_loop", "while", digest="96546f90b3d0"), REACHED, "first"),
        Insert(
            Place(LOOP, "training_loop", "stats_collector.update", digest="16dd42f6b448"), REACHED
        ),
    ),
    modern=(
        Replace(  # in today's timm the first normalization has the activation in it
            "pg_modules/projector.py",
            "model.act1",
            "getattr(model, 'act1', nn.Identity())",
        ),
        Replace(  # on GPU: torch 1.11 and later have no such operator, and need none
            "torch_utils/ops/conv2d_gradfix.py",
            "torch.backends.cudnn.enabled",
            "(torch.backends.cudnn.enabled and "
            "hasattr(torch.ops.aten, 'cudnn_convolution_backward_weight'))",
            "_should_use_custom_op",
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
