"""The YAML file that decides what a benchmark does, read into its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from benchkit.results import BenchError

M = TypeVar("M", bound=BaseModel)


def read(path: Path, model: type[M]) -> M:
    """Raises BenchError that says what is wrong with the file."""
    try:
        document: Any = YAML(typ="safe").load(path.read_text())
        return model.model_validate(document)
    except OSError as error:
        raise BenchError(f"cannot read {path.name}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise BenchError(f"{path.name}: {where}: {first['msg']}") from None
