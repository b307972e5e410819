"""The ways into a loop that is not ours: where top-k goes in."""
