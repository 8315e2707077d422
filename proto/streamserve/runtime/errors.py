"""Errors of setting up a process: the operator of the machine can mend them, so the message says how."""

from __future__ import annotations


class SetupError(RuntimeError):
    """The process cannot start as asked. Printed as one line, without a traceback."""

    exit_status = 2


class EngineRefused(SetupError):
    """The engine does not take its arguments. Another start with the same ones would end the same way."""

    exit_status = 3


class AddressInUse(SetupError):
    def __init__(self, address: str) -> None:
        super().__init__(
            f"{address} is in use or not an address of this machine: stop what listens there or choose another"
        )
        self.address = address
