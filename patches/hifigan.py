"""jik876/hifi-gan: two critics, each of which returns lists of scores and of features.

A call scores real sounds and generated ones; only what was generated goes through the gate, the
scores of a critic's parts with one ranking for all of them, and its features as companions.
"""

from topk_plugin import Argument, Insert, Patch, Place, Replace

TRAIN, MEL = "train.py", "meldataset.py"
# a critic: the digest of its call in the generator's step, and what that gives
CRITICS = {
    "mpd": ("0abe2b9746bd", "y_df_hat_g", "fmap_f_g"),
    "msd": ("833a17a54c51", "y_ds_hat_g", "fmap_s_g"),
}
PARSED = Place(TRAIN, "main", "parser.parse_args", digest="fbb33f0d1654")
EPOCHS = Place(TRAIN, "train", "for", 1, 3, digest="c0b0a86ea705")
MEL_OF = "librosa_mel_fn({}sampling_rate, {}n_fft, {}num_mels, {}fmin, {}fmax)"

PATCH = Patch(
    commit="4769534",
    digests={TRAIN: "7081e768985d"},
    flags=(
        Insert(PARSED, "topk.add_arguments(parser)", "before"),
        Insert(PARSED, "topk.start(a, 'hifigan')"),
    ),
    topk=(
        *(
            Insert(
                Place(TRAIN, "train", critic, 2, 2, digest=call),
                f"{scores}, {features} = topk(({scores}, {features}), "
                f"[f'0.{{n}}' for n in range(len({scores}))])",
            )
            for critic, (call, scores, features) in CRITICS.items()
        ),
        Insert(
            Place(TRAIN, "train", "MultiPeriodDiscriminator", digest="84ef4089091e"),
            "topk.keep_record(mpd)",
        ),
        Insert(EPOCHS, "topk.reach_epoch(epoch, steps)", "first"),
        Insert(EPOCHS, "topk.reach_epoch(epoch + 1, steps)", "last"),
    ),
    modern=(
        Replace(
            TRAIN,
            "torch.device('cuda:{:d}'.format(rank))",
            "torch.device('cuda:{:d}'.format(rank) if torch.cuda.is_available() else 'cpu')",
        ),
        Replace(
            MEL,
            MEL_OF.format(*[""] * 5),
            MEL_OF.format("sr=", "n_fft=", "n_mels=", "fmin=", "fmax="),
        ),
        Argument(MEL, "torch.stft", "return_complex=True"),
        Replace(MEL, "spec.pow(2)", "torch.view_as_real(spec).pow(2)"),
    ),
)
