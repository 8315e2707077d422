"""`streamserve generate`: one prompt through the router, its continuation streamed to stdout.

stdout carries the text (or, with --json, one object per line and chunk) and nothing else; the line of figures at the
end goes to stderr. TPOT = (time of the last token - time of the first) / (tokens - 1).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from streamserve.cli import client
from streamserve.cli.errors import Refused

if TYPE_CHECKING:
    import grpc

    from streamserve.v1 import common_pb2, inference_pb2

DEFAULT_TIMEOUT_SECONDS: Final = 300.0
MAX_TIMEOUT_SECONDS: Final = 86_400.0
FINISH_REASONS: Final = {1: "stop", 2: "length"}
EPILOG: Final = """\
examples:
  streamserve generate "Natalia sold 48 clips in April and"
  streamserve generate --chat --max-tokens 64 "What is a tide?"
  echo "def fibonacci(n):" | streamserve generate --workload humaneval -

--json prints one object per chunk: attempt, first_token_index, token_ids, text; the first one also has route, the
last one finish_reason, usage (with depths_seen) and route.

exit status:
  0 answered, 1 the request failed or nobody answers, 2 wrong usage"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "generate",
        help="send one prompt and stream the answer",
        description="Send one prompt to a running router and stream the answer.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    client.add_server_option(parser)
    parser.add_argument("--max-tokens", type=int, metavar="N", help="stop after N tokens (the server's default: 256)")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 (greedy), or 0.01 to 2 (the default: 1)")
    parser.add_argument("--ignore-eos", action="store_true", help="go on past the end-of-sequence token")
    parser.add_argument("--chat", action="store_true", help="send PROMPT as a user's chat message, not as raw text")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line and chunk")
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        default=DEFAULT_TIMEOUT_SECONDS,
        help=f"deadline of the request in seconds (default {DEFAULT_TIMEOUT_SECONDS:.0f})",
    )
    parser.add_argument("--model", default="", metavar="NAME", help="served name; needed only where several are served")
    parser.add_argument(
        "--workload", default="", metavar="NAME", help="class for acceptance and SLO (default: default)"
    )
    parser.add_argument("prompt", metavar="PROMPT", help="the text to continue; - reads it from stdin")


def run(args: argparse.Namespace) -> int:
    if not 0 < args.timeout <= MAX_TIMEOUT_SECONDS:
        raise Refused(f"--timeout must be above 0 seconds, and at most {MAX_TIMEOUT_SECONDS:.0f}")
    if args.max_tokens is not None and not 0 <= args.max_tokens < 2**32:
        raise Refused(f"--max-tokens {args.max_tokens} is no count of tokens: give 1 or more")
    with client.utf8_words():
        request = build_request(args, sys.stdin.read() if args.prompt == "-" else args.prompt)
    return client.run_with_channel(args, lambda channel: _stream(channel, request, args))


def build_request(args: argparse.Namespace, text: str) -> inference_pb2.GenerateRequest:
    """What is not given stays absent, so that the server's defaults hold."""
    from streamserve.v1 import common_pb2, inference_pb2

    if args.chat:
        message = common_pb2.ChatMessage(role="user", content=text)
        prompt = common_pb2.Prompt(chat=common_pb2.ChatMessages(messages=[message]))
    else:
        prompt = common_pb2.Prompt(text=text)
    sampling = common_pb2.SamplingParams()
    if args.max_tokens is not None:
        sampling.max_tokens = args.max_tokens
    if args.temperature is not None:
        sampling.temperature = args.temperature
    if args.ignore_eos:
        sampling.ignore_eos = True
    return inference_pb2.GenerateRequest(model=args.model, prompt=prompt, sampling=sampling, workload=args.workload)


async def _stream(channel: grpc.aio.Channel, request: inference_pb2.GenerateRequest, args: argparse.Namespace) -> int:
    from streamserve.v1 import inference_pb2_grpc

    clock = _Clock(started=time.monotonic())
    route: dict[str, str] | None = None
    usage: dict[str, Any] | None = None
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    async for chunk in stub.Generate(request, timeout=args.timeout):
        clock.saw(len(chunk.token_ids), time.monotonic())
        if chunk.HasField("route"):
            route = describe_route(chunk.route)
        if chunk.HasField("usage"):
            usage = describe_usage(chunk.usage)
        if args.json:
            print(json.dumps(chunk_object(chunk, route), ensure_ascii=False), flush=True)
        else:
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
    if not args.json:
        sys.stdout.write("\n")
        sys.stdout.flush()
        print(summary(clock, route, usage), file=sys.stderr)
    return 0


def chunk_object(chunk: inference_pb2.GenerateResponse, route: dict[str, str] | None) -> dict[str, Any]:
    """One line of --json: what this chunk carries, and at the end everything known about the request."""
    line: dict[str, Any] = {
        "attempt": chunk.attempt,
        "first_token_index": chunk.first_token_index,
        "token_ids": list(chunk.token_ids),
        "text": chunk.text,
    }
    last = chunk.finish_reason != 0
    if route is not None and (last or chunk.HasField("route")):
        line["route"] = route
    if last:
        line["finish_reason"] = FINISH_REASONS.get(chunk.finish_reason, str(chunk.finish_reason))
        line["usage"] = describe_usage(chunk.usage)
    return line


def describe_route(route: inference_pb2.Route) -> dict[str, str]:
    return {
        "lane": route.lane,
        "prefill_worker": route.prefill_worker,
        "decode_worker": route.decode_worker,
        "prefill_mode": route.prefill_mode,
    }


def describe_usage(usage: common_pb2.Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_prompt_tokens": usage.cached_prompt_tokens,
        "drafted_tokens": usage.drafted_tokens,
        "accepted_tokens": usage.accepted_tokens,
        "depths_seen": depths(usage.depths_seen_mask),
        "kv_transfer_bytes": usage.kv_transfer_bytes,
    }


def depths(mask: int) -> list[int]:
    """Bit k of the mask says that a step ran with depth k."""
    return [depth for depth in range(mask.bit_length()) if mask >> depth & 1]


@dataclass(slots=True)
class _Clock:
    started: float
    first: float | None = None
    last: float | None = None
    tokens: int = 0

    def saw(self, tokens: int, now: float) -> None:
        if tokens == 0:
            return
        self.first = now if self.first is None else self.first
        self.last = now
        self.tokens += tokens


def summary(clock: _Clock, route: dict[str, str] | None, usage: dict[str, Any] | None) -> str:
    """`lane-0 · 128 tokens · TTFT 84 ms · TPOT 4.1 ms · depths 0 3 6 · 71 of 110 drafts accepted · 135168 KV bytes`"""
    parts = [route["lane"]] if route else []
    parts.append(f"{clock.tokens} tokens")
    if clock.first is not None and clock.last is not None:
        parts.append(f"TTFT {(clock.first - clock.started) * 1e3:.0f} ms")
        if clock.tokens > 1:
            parts.append(f"TPOT {(clock.last - clock.first) / (clock.tokens - 1) * 1e3:.1f} ms")
    if usage is not None:
        parts.append("depths " + (" ".join(map(str, usage["depths_seen"])) or "none"))
        if usage["drafted_tokens"]:
            parts.append(f"{usage['accepted_tokens']} of {usage['drafted_tokens']} drafts accepted")
        if usage["kv_transfer_bytes"]:
            parts.append(f"{usage['kv_transfer_bytes']} KV bytes moved")
    return " · ".join(parts)
