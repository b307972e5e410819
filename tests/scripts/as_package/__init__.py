"""A package that is trained with `python -m as_package OUT`."""
