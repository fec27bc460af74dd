"""Transforms from the scans of a series to the input of the network."""
