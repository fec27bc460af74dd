"""Experiments on the models: ``python -m experiments NAME``, in a checkout. They do not ship with the package."""
