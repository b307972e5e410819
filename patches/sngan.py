"""christiancosgrove/pytorch-spectral-normalization-gan: one script, its loop at the top level.

The fakes of its critic steps are not detached, and the critic is never frozen: only the two calls
of which the generator's loss is made are enclosed.
"""

from topk_plugin import Enclose, Insert, Patch, Place, Replace

MAIN = "main.py"

PATCH = Patch(
    commit="12dcf94",
    digests={MAIN: "b14fd5ea3e18"},
    flags=(
        Insert(
            Place(MAIN, "", "parser.parse_args", digest="97308821845f"),
            "topk.add_arguments(parser)",
            "before",
        ),
        Insert(
            Place(MAIN, "", "parser.parse_args", digest="97308821845f"),
            "topk.start(args, 'sngan')",
        ),
    ),
    topk=(
        Insert(
            Place(MAIN, "", "optim.Adam", 1, 2, digest="b6cc5fb537ce"),
            "topk.keep_record(discriminator)",
            "before",
        ),
        Enclose(Place(MAIN, "train", "discriminator", 7, 8, digest="75dc30a08b6b")),
        Enclose(Place(MAIN, "train", "discriminator", 8, 8, digest="be40e3897ad3")),
        Insert(Place(MAIN, "", "train", digest="0eba729a9ac2"), "topk.end_epoch()"),
    ),
    modern=(
        Insert(
            Place(MAIN, "", "import"),
            "device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        ),
        Replace(MAIN, "_.cuda()", "_.to(device)"),
        Replace(MAIN, "_.data[0]", "_.item()"),
    ),
)
