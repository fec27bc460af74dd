"""Experiments on the models. Run ``python -m experiments NAME`` in a checkout; the package does not include them."""
