"""The one error that a user can mend."""

__all__ = ["InputError"]


class InputError(ValueError):
    """A user's mistake. The message is one line: the file or argument, what was expected, what came, and the cure."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))
