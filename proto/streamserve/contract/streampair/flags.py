"""Which vLLM flags are ours, and how a flag in `engine.args` is read.

vLLM's parser takes `max_model_len` for `max-model-len`, `kv-transfer-config.kv_role` for one key of a JSON
flag, `no-…` for the negation of a switch, short names (`tp`) and any unambiguous abbreviation. The StreamPair
takes one spelling, the long one with dashes: no flag is given twice, and no owned one slips through.
"""

import difflib

OWNED_FLAGS: dict[str, str] = {
    "model": "set spec.model.name",
    "served-model-name": "set spec.model.servedNames",
    "speculative-config": "set spec.speculation",
    "spec-method": "set spec.speculation.method",
    "spec-model": "set spec.speculation.draft.name",
    "spec-tokens": "set spec.speculation.maxDepth",
    "kv-transfer-config": "the prefill to decode transfer is set up by StreamServe",
    "scheduler-cls": "the scheduler carries SpecuStream; set spec.speculation.policy",
    "worker-extension-cls": "it carries the transfer from prefill to decode",
    "additional-config": "it carries SpecuStream's settings; set spec.speculation",
    "host": "the worker's address is chosen by `streamserve up` or the operator",
    "port": "the worker's address is chosen by `streamserve up` or the operator",
    "uds": "the worker listens on gRPC only",
    "headless": "the worker runs the engine itself",
    "api-server-count": "the worker has no HTTP server",
    "grpc": "the worker has its own gRPC server",
    "config": "write the flags of that file into engine.args",
    "api-key": "clients authenticate at the router",
    "hf-token": "a token has no place in argv; set spec.model.source.hub.tokenSecret",
    "ssl-keyfile": "TLS is set up by StreamServe",
    "ssl-certfile": "TLS is set up by StreamServe",
    "ssl-ca-certs": "TLS is set up by StreamServe",
    "disable-log-stats": "routing and the depth policy live on these statistics",
    "data-parallel-rank": "lanes take the place of external data parallelism; set spec.lanes",
    "data-parallel-start-rank": "lanes take the place of external data parallelism; set spec.lanes",
    "data-parallel-size-local": "lanes take the place of external data parallelism; set spec.lanes",
    "data-parallel-address": "lanes take the place of external data parallelism; set spec.lanes",
    "data-parallel-rpc-port": "lanes take the place of external data parallelism; set spec.lanes",
    "data-parallel-backend": "lanes take the place of external data parallelism; set spec.lanes",
    "data-parallel-external-lb": "the router balances; set spec.routing",
    "data-parallel-hybrid-lb": "the router balances; set spec.routing",
    "data-parallel-multi-port-external-lb": "the router balances; set spec.routing",
}

SHORT_FLAGS: dict[str, str] = {
    "tp": "tensor-parallel-size",
    "pp": "pipeline-parallel-size",
    "dp": "data-parallel-size",
    "dpn": "data-parallel-rank",
    "dpr": "data-parallel-start-rank",
    "dpl": "data-parallel-size-local",
    "dpa": "data-parallel-address",
    "dpp": "data-parallel-rpc-port",
    "dpb": "data-parallel-backend",
    "dpe": "data-parallel-external-lb",
    "dph": "data-parallel-hybrid-lb",
    "dpm": "data-parallel-multi-port-external-lb",
    "dcp": "decode-context-parallel-size",
    "pcp": "prefill-context-parallel-size",
    "ep": "enable-expert-parallel",
    "sc": "speculative-config",
    "cc": "compilation-config",
    "ac": "attention-config",
    "dc": "diffusion-config",
    "q": "quantization",
    "n": "nnodes",
    "r": "node-rank",
    "O": "optimization-level",
}

SAME_ON_BOTH_ROLES: tuple[str, ...] = (
    "dtype",
    "block-size",
    "kv-cache-dtype",
    "max-model-len",
    "quantization",
    "revision",
    "tokenizer",
)
"""A prefill and a decode that differ in one of these cannot exchange KV, or would not mean the same by it."""

PARALLEL_FLAGS: tuple[str, ...] = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")


def spelling(flag: str) -> str:
    """The one spelling we take for a flag: long, dashes, JSON sub-keys left as they are."""
    head, dot, rest = flag.partition(".")
    head = SHORT_FLAGS.get(head, head).replace("_", "-")
    return head + dot + rest


def owner(flag: str) -> str | None:
    """The owned flag that this one sets, negates or abbreviates, if any."""
    head = spelling(flag).partition(".")[0].lower()
    for candidate in (head, head.removeprefix("no-")):
        if candidate in OWNED_FLAGS:
            return candidate
    if head and head not in FREE_DESPITE_ABBREVIATION:
        for owned in OWNED_FLAGS:
            if owned.startswith(head):
                return owned
    return None


FREE_DESPITE_ABBREVIATION = frozenset({"data-parallel-size"})
"""Flags of their own that are also the beginning of an owned one."""


def opposite(switch: str) -> str:
    """The switch that undoes this one: vLLM takes the later of the two, wherever that stands."""
    return switch.removeprefix("no-") if switch.startswith("no-") else f"no-{switch}"


def parallel_size(args: dict[str, str], flag: str) -> int | None:
    """The value of a parallel size, 1 where it is not given, None where it is no positive integer."""
    text = args.get(flag, "1")
    if not text.isascii() or not text.isdigit() or len(text) > 4 or int(text) == 0:
        return None
    return int(text)


def world_size(args: dict[str, str]) -> int | None:
    """GPUs that one engine needs: tensor × pipeline × data parallel size."""
    product = 1
    for flag in PARALLEL_FLAGS:
        size = parallel_size(args, flag)
        if size is None:
            return None
        product *= size
    return product


def nearest(word: str, known: list[str]) -> str:
    """The known word that the reader most likely meant, or an empty text."""
    by_fold = {name.casefold(): name for name in reversed(known)}
    found = difflib.get_close_matches(word[:64].casefold(), list(by_fold), n=1, cutoff=0.6)
    return by_fold[found[0]] if found else ""
