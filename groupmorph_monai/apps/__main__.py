"""Entry point of the `groupmorph` command."""

import sys

from .signals import end_at_once


def main() -> int:
    """Catch signals, then import and run the command."""
    end_at_once()
    from .command_line import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
