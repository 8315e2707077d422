"""Would vLLM take these engine arguments? Asked before any running engine is stopped for them.

    python -m streamserve.worker.pipeserve.vllm_check < SETTINGS

SETTINGS is a JSON list with, for each engine, the list of its `streamserve-worker` flags (--role to --engine-args). On
stdout comes {"refused": [reason or null, …]}, in the same order. Nothing is loaded; it costs the import of
vLLM, some 15 s of one core, at the lowest priority. A status other than 0 means that nothing could be found out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from streamserve.runtime import process
from streamserve.runtime.errors import SetupError
from streamserve.worker import options
from streamserve.worker.pipeserve import compat, vllm_args, vllm_config
from streamserve.worker.pipeserve.vllm_config import EngineSettings

_LOWEST_PRIORITY = 19


def main() -> int:
    process.die_with_parent()
    # vLLM logs to stdout, which here has the answer alone.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.nice(_LOWEST_PRIORITY)
    try:
        engines = [settings(flags) for flags in json.load(sys.stdin)]
    except (ValueError, TypeError, SetupError) as error:
        print(f"error: the settings on stdin cannot be read: {error}", file=sys.stderr)
        return 2
    try:
        from vllm.platforms import current_platform

        compat.check()
    except (ImportError, compat.UnsupportedVllm) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    on_cpu = bool(current_platform.is_cpu())
    print(json.dumps({"refused": [refusal(engine, on_cpu=on_cpu) for engine in engines]}), file=answer, flush=True)
    return 0


def settings(flags: list[str]) -> EngineSettings:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    options.add_engine_options(parser)
    given = parser.parse_args(flags)
    return EngineSettings(
        role=given.role,
        model=given.model,
        draft=given.draft,
        method=given.method or "None",
        max_depth=given.max_depth,
        engine_args=options.engine_args(given.engine_args),
    )


def refusal(engine: EngineSettings, *, on_cpu: bool) -> str | None:
    """None when vLLM takes them."""
    vllm_args.set_environment(on_cpu=on_cpu, method=engine.method, model=engine.model, nixl_address=("127.0.0.1", 1))
    try:
        vllm_config.judged(vllm_config.arguments(engine, on_cpu=on_cpu))
    except SetupError as error:
        return str(error)
    return None


if __name__ == "__main__":
    sys.exit(main())
