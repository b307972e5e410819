"""martinarjovsky/WassersteinGAN: its critics average inside, so that is where the line goes.

Of a critic's calls only those of the generator step have an input that a gradient goes back
through: the fakes of the critic's own steps are taken out of their graph.
"""

from topk_plugin import Insert, Patch, Place, Replace

MAIN, DCGAN, MLP = "main.py", "models/dcgan.py", "models/mlp.py"
GATE = "output = topk(output) if input.requires_grad else output"
PARSER = Place(MAIN, "", "parser.parse_args", digest="d5dd7a9860e2")

PATCH = Patch(
    commit="f7a01e8",
    digests={MAIN: "38d70cdd5f1c", DCGAN: "d86205179f3b", MLP: "12ece01d7ebe"},
    flags=(
        Insert(PARSER, "topk.add_arguments(parser)", "before"),
        Insert(PARSER, "topk.start(opt, 'wgan')"),
    ),
    topk=(
        *(
            Insert(Place(file, critic, "output.mean", digest="6dc326e11990"), GATE, "before")
            for file, critic in ((DCGAN, "DCGAN_D.forward"), (MLP, "MLP_D.forward"))
        ),
        *(
            Insert(Place(MAIN, "", critic, digest=built), "topk.keep_record(netD)")
            for critic, built in (
                ("dcgan.DCGAN_D", "11f9fb0a3884"),
                ("mlp.MLP_D", "56112f2e54f1"),
            )
        ),
        Insert(
            Place(MAIN, "", "torch.save", 1, 2, digest="1ecd7e08d5c1"),  # after the pass
            "topk.end_epoch()",
            "before",
        ),
    ),
    modern=(
        Replace(MAIN, "transforms.Scale", "transforms.Resize"),
        Replace(MAIN, "_.next()", "next(_)"),
        *(
            Replace(MAIN, f"Variable({noise}, volatile=True)", f"Variable({noise})")
            for noise in ("noise", "fixed_noise")
        ),
        Replace(MAIN, "_.data[0]", "_.item()"),
    ),
)
