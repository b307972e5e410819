"""Plugins: finding them, and calling them."""
