"""`topk check`: the audit of a run's first generator steps."""
