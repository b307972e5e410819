"""ritheshkumar95/energy_based_generative_models: all its generator steps are in one file.

Real samples have low energies: the generator of its models lowers the energy of what it makes,
and that of the WGANs beside them raises the critic's score. Critic steps detach their fakes, and
the samplers call the networks themselves.
"""

from topk_plugin import Enclose, Insert, Patch, Place, Replace

FUNCTIONS = "scripts/train/functions.py"

# script: its critic, the digests of the statement that builds it and of the file
SCRIPTS = {
    "scripts/train/anomaly_kdd.py": ("netE", "9a7c8ac74332", "499a7ed4d59d"),
    "scripts/train/anomaly_mnist.py": ("netE", "2633242be353", "b4fa2e91b048"),
    "scripts/train/ebm_celeba.py": ("netE", "91b5589072ed", "bc0568f97f38"),
    "scripts/train/ebm_cifar.py": ("netE", "91b5589072ed", "71c9bd013e92"),
    "scripts/train/ebm_mnist.py": ("netE", "b594224ae180", "54f687b70cbc"),
    "scripts/train/ebm_toy.py": ("netE", "91b5589072ed", "e08c749f08b9"),
    "scripts/train/wgan-gp_cifar.py": ("netD", "5ad1f2452699", "8c8b3de0a261"),
    "scripts/train/wgan-gp_mnist.py": ("netD", "4192eb89fb56", "ba5e34d3c1fe"),
}

PARSERS = [
    Place(file, "parse_args", "parser.parse_args", digest="97308821845f") for file in SCRIPTS
]

# their passes over the data are loops of their own; others have a DataLoader, or no epochs
ANOMALY = ("scripts/train/anomaly_kdd.py", "scripts/train/anomaly_mnist.py")

ON_CUDA = (
    FUNCTIONS,
    *SCRIPTS,
    "scripts/utils.py",
    "scripts/evals.py",
    "scripts/sampler.py",
    "scripts/test/latent_space_mcmc.py",
    "data/mnist.py",
)

# on the machine of one of its authors; elsewhere the file is looked for beside its other data
MNIST = "'/scratch/kumarrit/data/mnist.npz'"

PATCH = Patch(
    commit="b4a8d82",
    digests={FUNCTIONS: "3ad79cbd89de", **{file: known[-1] for file, known in SCRIPTS.items()}},
    flags=(
        *(Insert(place, "topk.add_arguments(parser)", "before") for place in PARSERS),
        *(Insert(place, "topk.start(args, 'meg')") for place in PARSERS),
    ),
    topk=(
        Enclose(Place(FUNCTIONS, "train_generator", "netE", digest="764f677e2b95")),
        Enclose(Place(FUNCTIONS, "train_wgan_generator", "netD", digest="d66f2827f1f0")),
        *(
            Insert(Place(file, "", "EnergyModel", digest=built), f"topk.keep_record({critic})")
            for file, (critic, built, _) in SCRIPTS.items()
        ),
        *(
            Insert(Place(file, "", "for", 2, 2, digest="49232d071a0e"), "topk.end_epoch()")
            for file in ANOMALY
        ),
    ),
    modern=(
        *(
            Insert(
                Place(file, "", "import"),
                "device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
            )
            for file in ON_CUDA
        ),
        *(Replace(file, "_.cuda()", "_.to(device)") for file in ON_CUDA),
        Replace(
            "scripts/evals.py",
            "from scipy.misc import imsave",
            "from imageio.v2 import imwrite as imsave",
        ),
        Replace("data/mnist.py", "np.float", "float"),
        Insert(Place("data/mnist_anomaly.py", "", "import"), "import os"),
        Replace(
            "data/mnist_anomaly.py",
            MNIST,
            f"{MNIST} if os.path.exists({MNIST}) else '../data/mnist.npz'",
        ),
        Replace("data/kdd.py", "df.as_matrix(result)", "df[result].values"),
        Replace("data/kdd.py", "dummies.as_matrix()", "dummies.values"),
    ),
)
