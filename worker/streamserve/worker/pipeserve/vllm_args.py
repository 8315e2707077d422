"""From a StreamPair's engine arguments to vLLM's own: every vLLM flag is accepted, except those that we set.

    written so                          vLLM reads
    max-model-len: "8192"               --max-model-len=8192
    enable-prefix-caching: "false"      --no-enable-prefix-caching
    cudagraph-capture-sizes: "1 2 4"    --cudagraph-capture-sizes 1 2 4
    compilation-config.mode: "0"        --compilation-config.mode=0
    compilation-config.custom_ops+: x   --compilation-config.custom_ops+=x

A switch takes "true" or "false", a list takes items with spaces between them, a JSON flag takes all of its JSON or one
key after a dot; a key with a + takes items with commas between them, for a list that vLLM adds them to. A flag that
vLLM does not have is refused with the nearest one it has. One that is ours is refused with the place where to set it:
contract/streampair/flags.py lists them for the StreamPair and for us.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from streamserve.contract.runtime_config import SpeculationConfig
from streamserve.contract.streampair import flags
from streamserve.runtime.errors import SetupError
from streamserve.worker.specustream.policy import DepthPolicy

METHODS: Final = {"DraftModel": "draft_model", "Ngram": "ngram", "Eagle": "eagle", "Eagle3": "eagle3", "Mtp": "mtp"}
_V1_RUNNER_ONLY: Final = ("DraftModel", "Ngram")
DEFAULT_MAX_RUNNING: Final = {"cpu": 64, "other": 256}

# oneDNN keeps a compiled primitive for each count of tokens that a layer has ever seen, about half a MiB each and 1,024
# of them: a prefill engine grew by 500 MiB within minutes. vLLM's own 32 for each layer are what repeated lengths hit.
CPU_ENVIRONMENT: Final = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
    "UCX_TLS": "tcp,self,sm",
}
_ENVIRONMENT: Final = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def depth_policy(speculation: SpeculationConfig) -> DepthPolicy:
    """The scheduler's form of the runtime configuration."""
    return DepthPolicy(
        policy=speculation.policy.value,
        min_depth=speculation.min_depth,
        max_depth=speculation.max_depth,
        fixed_depth=speculation.fixed_depth,
        itl_seconds=speculation.inter_token_latency_ms / 1000,
        probe_fraction=speculation.probe_percent / 100,
    )


def set_environment(*, on_cpu: bool, method: str, model: str, nixl_address: tuple[str, int]) -> None:
    """What vLLM reads from the environment of the process that starts it. The user's own values stay."""
    defaults = dict(_ENVIRONMENT)
    if on_cpu:
        defaults |= CPU_ENVIRONMENT
    if method in _V1_RUNNER_ONLY:
        # The second runner drafts the full depth whatever the scheduler says.
        defaults["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    if Path(model).is_dir():
        defaults["HF_HUB_OFFLINE"] = "1"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    host, port = nixl_address
    os.environ["VLLM_NIXL_SIDE_CHANNEL_HOST"] = host
    os.environ["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(port)


def parse(given: Mapping[str, str], *, model: str, on_cpu: bool) -> Any:
    """vLLM's AsyncEngineArgs for `given` flags. Raises SetupError naming the flag."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    parser = AsyncEngineArgs.add_cli_args(_parser())
    # --help would print and end the process.
    known = {name: action for action in parser._actions for name in action.option_strings if action.dest != "help"}
    named = {flags.spelling(name.lstrip("-")): str(value) for name, value in given.items()}
    args = AsyncEngineArgs.from_cli_args(parser.parse_args(["--model", model, *command_line(named, known)]))
    if args.max_num_seqs is None:
        args.max_num_seqs = DEFAULT_MAX_RUNNING["cpu" if on_cpu else "other"]
    if on_cpu and "enforce-eager" not in named and "no-enforce-eager" not in named:
        args.enforce_eager = True
    args.disable_log_stats = False
    return args


def command_line(given: Mapping[str, str], known: Mapping[str, argparse.Action]) -> list[str]:
    """The words of vLLM's command line for `given`; `known` are its flags. Raises SetupError naming the flag.

    A value stands behind its flag's `=`, or is a list of words that begin with no dash: none is read as another flag.
    """
    words: list[str] = []
    for name, value in given.items():
        words += _words(name, value, given, known)
    return words


def _words(name: str, value: str, given: Mapping[str, str], known: Mapping[str, argparse.Action]) -> list[str]:
    head, has_key, _ = name.partition(".")
    _refuse_ours(head, value)
    action = known.get(f"--{head}")
    if action is None:
        near = difflib.get_close_matches(f"--{head}", known, n=1)
        hint = f"; did you mean {near[0].lstrip('-')}?" if near else ""
        raise SetupError(f"vLLM has no engine argument {head}{hint}")
    if has_key and head in given:
        # vLLM's parser would let the keys win and drop the rest.
        raise SetupError(f"engine argument {head} is given whole and by the key {name}; write it one way")
    if action.nargs == 0:
        return _switch(name, value, known)
    if has_key or action.nargs in (None, "?"):
        return [f"--{name}={value}"]
    items = value.split()
    if strange := next((item for item in items if item.startswith("-")), None):
        raise SetupError(f"engine argument {name} is a list; its item {strange!r} cannot begin with a dash")
    return [f"--{name}", *items]


def _switch(name: str, value: str, known: Mapping[str, argparse.Action]) -> list[str]:
    head, has_key, _ = name.partition(".")
    if has_key:
        raise SetupError(f"engine argument {head} is a switch and has no keys; write {head}: true or false")
    if value.lower() in ("true", ""):
        return [f"--{name}"]
    if value.lower() == "false":
        opposite = f"--{name.removeprefix('no-')}" if name.startswith("no-") else f"--no-{name}"
        return [opposite] if opposite in known else []
    raise SetupError(f"engine argument {name} is a switch; write true or false, not {value!r}")


def _refuse_ours(name: str, value: str) -> None:
    if owner := flags.owner(name):
        raise SetupError(f"engine argument {name} is set by StreamServe: remove it; {flags.OWNED_FLAGS[owner]}")
    if name == "data-parallel-size" and flags.parallel_size({name: value}, name) != 1:
        raise SetupError(f"engine argument {name} is {value!r} and a lane has 1: remove it; set spec.lanes")


def _parser() -> Any:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):
        def error(self, message: str) -> NoReturn:
            first, _, _ = message.partition("    For further information")
            raise SetupError(f"vLLM does not take these engine arguments: {' '.join(first.split())}")

    return Parser()


def speculative_config(
    *, method: str, draft: str | None, max_depth: int, role: str, max_running: int
) -> dict[str, Any] | None:
    """vLLM's speculative_config; the same method and drafter on both sides of a lane, for draft KV moves too."""
    if method == "None" or max_depth == 0:
        return None
    if method not in METHODS:
        known = ", ".join(["None", *METHODS])
        raise SetupError(f"speculation.method {method} is not in this release; use one of {known}")
    if method not in ("Ngram", "Mtp") and not draft:
        raise SetupError(f"speculation.method {method} needs a draft model; set speculation.draft.name")
    table = [[1, max_running, 0]] if role == "prefill" else depth_table(max_depth, max_running)
    config: dict[str, Any] = {
        "method": METHODS[method],
        "num_speculative_tokens": max_depth,
        "num_speculative_tokens_per_batch_size": table,
    }
    if method == "Ngram":
        config |= {"prompt_lookup_max": 4, "prompt_lookup_min": 2}
    elif method != "Mtp":
        config["model"] = draft
    return config


def depth_table(max_depth: int, max_running: int) -> list[list[int]]:
    """[first batch, last batch, depth], deepest for small batches, every depth named where `max_running` has room.

    It declares to vLLM which depths will come, and is what is left to steer by if the law fails.
    """
    table: list[list[int]] = []
    first, size = 1, 4
    for depth in range(max_depth, -1, -1):
        last = max_running if depth == 0 else min(first + size - 1, max_running - depth)
        if last < first:
            continue
        table.append([first, last, depth])
        first, size = last + 1, min(2 * size, 32) if len(table) > 1 else size
    return table


def transfer_config(*, on_cpu: bool) -> dict[str, Any]:
    """Both roles send and receive: a decode engine also computes short prompts. A lost transfer is an error."""
    return {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_both",
        "kv_buffer_device": "cpu" if on_cpu else "cuda",
        "kv_load_failure_policy": "fail",
    }
