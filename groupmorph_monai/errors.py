"""The exception for errors that the user can correct."""


class InputError(ValueError):
    """Invalid input or setting. The message is one line: the file or argument, the expected and the actual value, and
    how to correct it. Characters of names that could change a terminal are escaped."""

    def __init__(self, message: str):
        line = " ".join(message.splitlines())
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line))
