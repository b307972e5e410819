"""NVlabs/stylegan2-ada-pytorch: as StyleGAN3, with another loss and no count of images in it.

Copies of it have top-k of their own, which takes the top k of negated logits: the worst samples.
One in which that is on is refused.
"""

from topk_plugin import Enclose, Insert, Patch, Place, Replace

LOSS, LOOP, TRAIN = "training/loss.py", "training/training_loop.py", "train.py"
GRID = "torch_utils/ops/grid_sample_gradfix.py"
ACCUMULATE = "StyleGAN2Loss.accumulate_gradients"
MAIN = Place(TRAIN, "", "main", digest="ea1a0f910230")
REACHED = "topk.reach_epoch(cur_nimg // len(training_set), cur_nimg // batch_size)"
WHY = (
    "its own top-k is on, which keeps the samples of lowest logits, the worst; leave out its --topk"
)
HAS_CUDA = "torch.cuda.is_available()"

PATCH = Patch(
    commit="d72cc7d",
    digests={LOSS: "1bd68d7dc1c9", LOOP: "0b589a731712"},
    flags=tuple(  # its own are click's, which needs no parser
        Insert(MAIN, line, "before")
        for line in (
            "import argparse, sys",
            "parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)",
            "topk.add_arguments(parser)",
            "args, sys.argv[1:] = parser.parse_known_args()",
            "topk.start(args, 'stylegan2_ada')",
        )
    ),
    topk=(
        Enclose(Place(LOSS, ACCUMULATE, "self.run_D", 1, 3, "b9ddb957b10c")),
        Insert(
            Place(LOSS, ACCUMULATE, "def", digest="6f7b7d2eef99"),
            f"if getattr(self, 'G_top_k', False): topk.refuse({WHY!r})",
            "first",
        ),
        Insert(Place(LOOP, "training_loop", "while", digest="96546f90b3d0"), REACHED, "first"),
        Insert(
            Place(LOOP, "training_loop", "stats_collector.update", digest="16dd42f6b448"), REACHED
        ),
    ),
    modern=(
        # the second derivative that R1 takes of augmented images
        Replace(
            GRID,
            "any(torch.__version__.startswith(x) for x in ['1.7.', '1.8.', '1.9'])",
            "True",
        ),
        Replace(
            GRID,
            "op(grad_output, input, grid, 0, 0, False)",
            "torch.ops.aten.grid_sampler_2d_backward(grad_output, input, grid, 0, 0, False, "
            "[True, True])",
        ),
        *(
            Replace(  # in copies
                f"torch_utils/ops/{name}_gradfix.py",
                "from pkg_resources import parse_version",
                "from torch.torch_version import TorchVersion as parse_version",
            )
            for name in ("conv2d", "grid_sample")
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
