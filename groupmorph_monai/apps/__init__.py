"""User interfaces: the command line, Python, 3D Slicer, MONAI Label and monai-physio."""
