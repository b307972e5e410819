"""Adapters: one module for each family of third-party repositories, its ``ADAPTER`` in it."""
