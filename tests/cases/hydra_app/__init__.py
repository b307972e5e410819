"""A package that hydra starts: `-m hydra_app.train`."""
