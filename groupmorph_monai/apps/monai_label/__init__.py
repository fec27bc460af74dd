"""The app of MONAI Label: ``main.py``, which its server loads by the folder's path, over what a request may ask."""
