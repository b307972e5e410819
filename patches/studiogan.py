"""POSTECH-CVLab/PyTorch-StudioGAN: top-k of its own, which is off wherever this one is on.

Its training loop has a variable ``topk``, hence ``top_k`` there. The epoch is the one that its own
top-k goes by: what the worker had counted when an iteration began, which its checkpoints restore.
"""

from topk_plugin import Argument, Enclose, Insert, Patch, Place, Replace

LOADER, WORKER, MODEL, CKPT = "loader.py", "worker.py", "models/model.py", "utils/ckpt.py"
MAIN, START = "main.py", "load_configs_initialize_training"
STEP, LOG = "WORKER.train_generator", "WORKER.log_train_statistics"
ON_CPU = "if torch.cuda.is_available() else"
K = "topk.k(self.OPTIMIZATION.batch_size)"
REACHED = "top_k.reach_epoch(worker.epoch_counter, step * cfgs.OPTIMIZATION.g_updates_per_step)"

PATCH = Patch(
    commit="947b35e",
    folder="src",
    digests={WORKER: "3e514af44953", LOADER: "82fbcc291fe8"},
    flags=(
        Insert(
            Place(LOADER, "load_worker", "def", digest="2b63f7b21212"),
            "top_k.start({'LOSS': vars(cfgs.LOSS)}, 'studiogan')",
            "first",
        ),
    ),
    topk=(
        Enclose(Place(WORKER, STEP, "self.Dis", 1, 3, digest="daf88eb77887")),
        # the same samples with other labels (ADC); the third call is of reals
        Enclose(Place(WORKER, STEP, "self.Dis", 2, 3, digest="150e62572442"), "topk.follow"),
        Replace(WORKER, "self.LOSS.apply_topk", K, LOG),
        Replace(WORKER, "int(self.topk)", K, LOG),
        Insert(
            Place(LOADER, "", "import", digest="6fc40b06424c"),
            "from topk_plugin.script import topk as top_k",
        ),
        Insert(
            Place(LOADER, "load_worker", "cfgs.define_optimizer", digest="bd124da39b82"),
            "top_k.keep_record(Dis)",
            "before",
        ),
        Insert(
            Place(LOADER, "load_worker", "WORKER", digest="ead0d04e4cd0"),
            "cfgs.LOSS.apply_topk = False",
            "before",
        ),
        Insert(Place(LOADER, "load_worker", "while", digest="6de25c869a31"), REACHED, "first"),
        # the record in a checkpoint goes by its epoch
        Insert(
            Place(LOADER, "load_worker", "worker.save", digest="f8b29335cf53"), REACHED, "before"
        ),
    ),
    modern=(
        Replace(MAIN, "torch.cuda.device_count()", "max(1, torch.cuda.device_count())", START),
        # a number still: it tells the first process
        Replace(
            MAIN, "torch.cuda.current_device()", f"(torch.cuda.current_device() {ON_CPU} 0)", START
        ),
        Replace(
            LOADER,
            "torch.cuda.set_device(local_rank)",
            f"(torch.cuda.set_device(local_rank) {ON_CPU} None)",
        ),
        Insert(
            Place(MODEL, "load_generator_discriminator", "def"),
            f"device = device {ON_CPU} 'cpu'",
            "first",
        ),
        Replace(MODEL, "[device]", f"([device] {ON_CPU} None)"),
        Insert(
            Place(WORKER, "WORKER.__init__", "def"),
            f"local_rank = local_rank {ON_CPU} 'cpu'",
            "first",
        ),
        Replace(WORKER, "'cuda'", f"('cuda' {ON_CPU} 'cpu')", "WORKER.__init__"),
        Replace(CKPT, "_.cuda()", f"_.to('cuda' {ON_CPU} 'cpu')"),
        Argument(CKPT, "torch.load", "weights_only=False"),
        # no network is the best one after a training without metrics, which ended in an IndexError
        Insert(
            Place(CKPT, "load_best_model", "def"),
            "if not glob.glob(join(glob.escape(ckpt_dir), 'model=G-best-*')): return 0",
            "first",
        ),
    ),
)
