"""Real images for the reference experiments, and the order in which they are seen.

What is read is checked, and its name and digest go into every score, so that scores of other data
are told apart.
"""
