"""GroupMorph: all K scans of one patient in one space, with smooth invertible deformations and a measure of trust."""

__version__ = "0.2.0"
