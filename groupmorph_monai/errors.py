"""The exception for errors that the user can correct."""

__all__ = ["InputError"]


class InputError(ValueError):
    """Invalid input or setting. The message is one line: the file or argument, the expected and the actual value, and
    how to correct it."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))
