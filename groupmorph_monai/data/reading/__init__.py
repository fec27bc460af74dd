"""Readers of images, series, landmarks and data lists."""
