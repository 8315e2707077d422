"""How every record of the contract that is JSON is read: bounded, and refused with the field and the reason."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


def read(model: type[Model], data: bytes | str, *, max_bytes: int, what: str, error: type[ValueError]) -> Model:
    """The record in `data`. Raises `error` with a readable reason, and nothing else; `what` names it: "a record"."""
    if len(data) > max_bytes:
        raise error(f"{len(data)} bytes is over the {max_bytes} that {what} may have")
    try:
        return model.model_validate_json(data)
    except ValidationError as refused:
        first = refused.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise error(f"{where}: {first['msg']}") from None
    except ValueError as refused:
        raise error(f"not readable: {refused}") from None
