"""MONAI Label app. Its server loads ``main.py`` by the path of this folder."""
