"""A loop that is not ours: its critic calls intercepted, its epochs told, its checkpoints used."""
