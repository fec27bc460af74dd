"""Contrast enhancement of DCE-MRI: models, fits and maps."""
