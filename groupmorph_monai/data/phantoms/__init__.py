"""Synthetic series with known motion."""
