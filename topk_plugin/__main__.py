"""`python -m topk_plugin`, for launchers such as torchrun; the same as the `topk` command."""

import sys

from topk_plugin.cli import main

sys.exit(main())
