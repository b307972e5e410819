"""The critics of a loop in which nobody named them: found by what they do while k = B."""
