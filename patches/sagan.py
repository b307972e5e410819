"""heykeetae/Self-Attention-GAN: main.py reads the settings, trainer.py holds the loop.

The critic returns its scores and two attention maps, and squeezes the scores of a batch of one to
a single number: the scores alone go through the gate, with one dimension again.

The loop catches whatever is raised while it fetches a batch. Epochs are told outside of that:
before the loop, for a run that goes on, and after each generator step, so that the checkpoint
which follows a whole pass counts it. A run that goes on begins with a new pass.
"""

from topk_plugin import Insert, Patch, Place, Replace

MAIN, PARAMETER, TRAINER = "main.py", "parameter.py", "trainer.py"

PATCH = Patch(
    commit="8714a54",
    digests={TRAINER: "31ff29bfb93c"},
    flags=(
        Insert(
            Place(PARAMETER, "get_parameters", "parser.parse_args", digest="4b21533a3d07"),
            "topk.add_arguments(parser)",
            "before",
        ),
        Insert(
            Place(MAIN, "", "get_parameters", digest="f63cc67d7122"),
            "topk.start(config, 'sagan')",
        ),
    ),
    topk=(
        Insert(
            Place(TRAINER, "Trainer.train", "self.D", 4, 4, digest="055af506ec85"),
            "g_out_fake = topk(g_out_fake.reshape(-1))",
        ),
        Insert(
            Place(TRAINER, "Trainer.__init__", "self.build_model", digest="3187ac600481"),
            "topk.keep_record(self.D)",
        ),
        Insert(
            Place(TRAINER, "Trainer.train", "for", digest="332350007012"),
            "topk.reach_epoch((self.pretrained_model or 0) // step_per_epoch, "
            "self.pretrained_model or 0)",
            "before",
        ),
        Insert(
            Place(TRAINER, "Trainer.train", "self.g_optimizer.step", digest="1b052e259e8c"),
            "topk.reach_epoch((self.pretrained_model or 0) // step_per_epoch "
            "+ (step + 1 - start) // step_per_epoch, step + 1)",
        ),
    ),
    modern=(
        Insert(
            Place(TRAINER, "", "import"),
            "device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        ),
        Replace(TRAINER, "_.cuda()", "_.to(device)"),
        Replace(TRAINER, "_.data[0]", "_.item()"),
    ),
)
