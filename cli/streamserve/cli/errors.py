"""How a command says that it could not do its work: one line on stderr that ends with what to do.

Refused     the command line, the file or the machine is at fault; nothing was started     exit 2
Failed      what was asked did not work out                                                exit 1
"""

from __future__ import annotations


class CommandError(Exception):
    """Base. The message is printed as it is, without a traceback."""

    exit_status = 1


class Refused(CommandError):
    """Nothing was started: something has to be put right first. One problem per argument."""

    exit_status = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Failed(CommandError):
    """It was tried and did not work."""
