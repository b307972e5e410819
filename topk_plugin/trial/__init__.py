"""Paired trials: a script is trained several times without and with top-k. Does it help?"""
