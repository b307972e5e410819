"""Tensors and one optimizer step: ranking, k, the gates, the direction, what was counted."""
