"""Files in local mode: reading a StreamPair from disk, and which model names are folders beside it.

A name that is a folder relative to the YAML file becomes that folder's absolute path. A name that can only be a path
(it begins with ./, ../ or /) and is no model folder is a problem. Every other name is a hub id and stays as it is.
"""

from collections.abc import Callable
from pathlib import Path

from streamserve.contract.streampair import fields
from streamserve.contract.streampair.loader import Loaded, read
from streamserve.contract.streampair.nodes import MAX_BYTES, Document
from streamserve.contract.streampair.problems import Problem
from streamserve.contract.streampair.resource import StreamPair
from streamserve.contract.streampair.workers import Source

Where = Callable[[fields.Path], tuple[int, int]]

CLUSTER_ONLY: tuple[fields.Path, ...] = (
    ("spec", "model", "source"),
    ("spec", "speculation", "draft", "source"),
    ("spec", "engine", "image"),
    ("spec", "prefill", "scaling"),
    ("spec", "prefill", "resources"),
    ("spec", "prefill", "template"),
    ("spec", "decode", "scaling"),
    ("spec", "decode", "resources"),
    ("spec", "decode", "template"),
    ("spec", "placement"),
    ("spec", "speculation", "rollout"),
    ("spec", "router", "replicas"),
    ("spec", "router", "template"),
    ("spec", "paused"),
)
"""Settings that `streamserve up` accepts and has no use for."""


def load_file(path: Path) -> StreamPair | list[Problem]:
    """The StreamPair in this file with its model folders resolved, or its problems. Never raises."""
    loaded = read_file(path)
    if loaded.pair is None:
        return list(loaded.problems)
    return resolve_model_paths(loaded.pair, path.parent, loaded.document.where)


def read_file(path: Path) -> Loaded:
    """As `loader.read`; a file that cannot be read is a problem too."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        problem = Problem("", 1, 1, f"cannot be read ({reason}): check the path and its permissions")
        return Loaded(None, (problem,), Document())
    return read(content)


def resolve_model_paths(
    pair: StreamPair, base_dir: Path, where: Where = lambda _path: (1, 1), *, absolute_may_miss: bool = False
) -> StreamPair | list[Problem]:
    """The pair with local model folders as absolute paths, or a problem for each folder that is missing.

    `absolute_may_miss` is for checking a file that may be meant for a cluster, where an absolute path is the pod's.
    """
    spec, problems = pair.spec, []
    model, draft = spec.model, spec.speculation.draft
    resolved = _resolve(model.name, model.source, base_dir, absolute_may_miss)
    if isinstance(resolved, str):
        model = model.model_copy(update={"name": resolved})
    else:
        problems.append(_problem(resolved[0], ("spec", "model", "name"), where))
    if draft is not None:
        resolved = _resolve(draft.name, draft.source or spec.model.source, base_dir, absolute_may_miss)
        if isinstance(resolved, str):
            draft = draft.model_copy(update={"name": resolved})
        else:
            problems.append(_problem(resolved[0], ("spec", "speculation", "draft", "name"), where))
    if problems:
        return problems
    speculation = spec.speculation.model_copy(update={"draft": draft})
    return pair.model_copy(update={"spec": spec.model_copy(update={"model": model, "speculation": speculation})})


def looks_like_path(name: str) -> bool:
    """Names that no hub has."""
    return name in (".", "..") or name.startswith(("./", "../", "/"))


def cluster_only(pair: StreamPair) -> list[str]:
    """Settings that the author wrote and that have no effect in local mode."""
    return [fields.render(path) for path in CLUSTER_ONLY if _is_given(pair, path)]


def _resolve(name: str, source: Source | None, base_dir: Path, absolute_may_miss: bool) -> str | tuple[str]:
    """The folder or the name unchanged; or, in a tuple, what is wrong."""
    if source is not None and (source.hub or source.persistent_volume_claim or source.host_path):
        return name
    folder = base_dir / name
    try:
        if (folder / "config.json").is_file():
            return str(folder.resolve())
        if not looks_like_path(name) or (absolute_may_miss and name.startswith("/")):
            return name
        if folder.is_dir():
            return (f"{folder} has no config.json: point at the folder that holds the model's files",)
        if folder.exists():
            return (f"{folder} is a file: name the folder that holds the model's files",)
    except (OSError, ValueError, RuntimeError) as error:
        if not looks_like_path(name):
            return name
        return (f"{name} cannot be looked up ({error}): check the path",)
    return (f"there is no folder {folder}: paths are relative to this file; correct it or write a hub id",)


def _problem(message: str, path: fields.Path, where: Where) -> Problem:
    line, column = where(path)
    return Problem(fields.render(path), line, column, message)


def _is_given(pair: StreamPair, path: fields.Path) -> bool:
    node: object = pair
    for part in path:
        if not isinstance(node, fields.SpecModel):
            return False
        name = next(name for name, field in type(node).model_fields.items() if field.alias == part)
        if name not in node.model_fields_set:
            return False
        node = getattr(node, name)
    return node is not None
