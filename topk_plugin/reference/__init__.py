"""The experiments of the paper, built on the public names of topk_plugin alone."""
