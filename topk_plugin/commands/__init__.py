"""Commands of `topk` that are more than a line: their flags, and what they call."""
