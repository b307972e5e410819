"""pytorch/examples, its folder dcgan: one script, its loop at the top level.

It runs on today's torch as it is. Its checkpoints are weights alone, and a run that goes on from
them counts its epochs from 0: the epoch is what the critic's checkpoint says.
"""

from topk_plugin import Enclose, Insert, Patch, Place

MAIN = "main.py"

PATCH = Patch(
    commit="77f55b9",
    folder="dcgan",
    digests={MAIN: "4f6aef352782"},
    flags=(
        Insert(
            Place(MAIN, "", "parser.parse_args", digest="d5dd7a9860e2"),
            "topk.add_arguments(parser)",
            "before",
        ),
        Insert(
            Place(MAIN, "", "parser.parse_args", digest="d5dd7a9860e2"),
            "topk.start(opt, 'dcgan')",
        ),
    ),
    topk=(
        Enclose(Place(MAIN, "", "netD", 3, 3, digest="54218af7c287")),
        Insert(
            Place(MAIN, "", "netD.apply", digest="5122db1b1c0c"),  # before weights are loaded
            "topk.keep_record(netD)",
        ),
        Insert(
            Place(MAIN, "", "torch.save", 1, 2, digest="238aec3adc4f"),  # after the pass
            "topk.end_epoch()",
            "before",
        ),
    ),
)
