"""Patches: one module of source rules for each third-party repository."""
