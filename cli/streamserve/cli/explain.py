"""`streamserve explain`: which lane a request would get and why, every term of every candidate.

Nothing is sent to a worker. The costs come from the router's own decision function, on the signals that it has now.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any, Final

from streamserve.cli import client
from streamserve.cli.errors import Refused

if TYPE_CHECKING:
    import grpc

    from streamserve.v1 import admin_pb2, inference_pb2

DEFAULT_PROMPT_TOKENS: Final = 512
MAX_PROMPT_TOKENS: Final = 1_000_000
TIMEOUT_SECONDS: Final = 10.0
# Any id of any vocabulary will do: routing looks at lengths, and this one is in all of them.
_SOME_TOKEN: Final = 2

EPILOG: Final = """\
Each column is a pair of prefill and decode worker, each row a term of its predicted cost. The cheapest one is chosen;
what cannot serve stands below with the reason. Nothing is sent to a worker, and nothing is booked.

examples:
  streamserve explain --prompt-tokens 500 --max-tokens 128
  streamserve explain --workload gsm8k "Natalia sold 48 clips in April and"
  streamserve explain --json | jq -r .chosen

exit status:
  0 a lane can serve, 1 none can or the router does not answer, 2 wrong usage"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "explain",
        help="show how a request would be routed, term by term",
        description="Show which lane a request would get now, and what every candidate would cost, in seconds.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    client.add_server_option(parser)
    parser.add_argument("--model", default="", metavar="NAME", help="served name; needed only where several are served")
    parser.add_argument(
        "--workload", default="", metavar="NAME", help="class for acceptance and SLO (default: default)"
    )
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="tokens the request would ask for (the server's default: 256)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--prompt-tokens",
        type=int,
        metavar="N",
        help=f"length of an imagined prompt in tokens (default {DEFAULT_PROMPT_TOKENS})",
    )
    what.add_argument("prompt", metavar="PROMPT", nargs="?", help="a real prompt, in place of --prompt-tokens")


def run(args: argparse.Namespace) -> int:
    with client.utf8_words():
        request = build_request(args)

    async def work(channel: grpc.aio.Channel) -> int:
        from streamserve.v1 import admin_pb2, admin_pb2_grpc

        stub = admin_pb2_grpc.AdminServiceStub(channel)
        answer = await stub.ExplainRoute(admin_pb2.ExplainRouteRequest(request=request), timeout=TIMEOUT_SECONDS)
        if args.json:
            print(json.dumps(as_object(answer)))
        else:
            _print_table(answer)
        return 0 if answer.chosen else 1

    return client.run_with_channel(args, work)


def build_request(args: argparse.Namespace) -> inference_pb2.GenerateRequest:
    from streamserve.contract import tokens
    from streamserve.v1 import common_pb2, inference_pb2

    if args.prompt is not None:
        prompt = common_pb2.Prompt(text=args.prompt)
    else:
        count = DEFAULT_PROMPT_TOKENS if args.prompt_tokens is None else args.prompt_tokens
        if not 1 <= count <= MAX_PROMPT_TOKENS:
            raise Refused(f"--prompt-tokens {count} is not between 1 and {MAX_PROMPT_TOKENS}")
        packed = tokens.pack([_SOME_TOKEN] * count)
        prompt = common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids_le32=packed))
    request = inference_pb2.GenerateRequest(prompt=prompt, model=args.model, workload=args.workload)
    if args.max_tokens is not None:
        if not 1 <= args.max_tokens < 2**32:
            raise Refused(f"--max-tokens {args.max_tokens} is no count of tokens: give 1 or more")
        request.sampling.max_tokens = args.max_tokens
    return request


def as_object(answer: admin_pb2.ExplainRouteResponse) -> dict[str, Any]:
    return {
        "policy": answer.policy,
        "chosen": answer.chosen,
        "candidates": [
            {
                "lane": candidate.lane,
                "prefill_worker": candidate.prefill_worker,
                "decode_worker": candidate.decode_worker,
                "cost_seconds": candidate.cost_seconds,
                "terms": [{"name": t.name, "value": t.value, "unit": t.unit} for t in candidate.terms],
                "prefill_signal_age_ms": candidate.prefill_signal_age_ms,
                "decode_signal_age_ms": candidate.decode_signal_age_ms,
                "reason": candidate.reason,
            }
            for candidate in answer.candidates
        ],
        "refused": [{"lane": refusal.lane, "reason": refusal.reason} for refusal in answer.refused],
    }


def _print_table(answer: admin_pb2.ExplainRouteResponse) -> None:
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 200)
    if answer.chosen:
        console.print(f"policy {answer.policy}: {answer.chosen} is chosen")
    else:
        known = "" if answer.refused else ", for none is known: see `streamserve top` and the log of `streamserve up`"
        console.print(f"no lane can serve{known}")
    if answer.candidates:
        console.print(_table(answer))
        for candidate in answer.candidates:
            way = " → ".join(filter(None, (candidate.prefill_worker, candidate.decode_worker)))
            console.print(f"{way}: {candidate.reason}", markup=False)
    for refusal in answer.refused:
        console.print(f"not {refusal.lane}: {refusal.reason}", markup=False)


def _table(answer: admin_pb2.ExplainRouteResponse) -> Any:
    """One column per candidate, cheapest first; one row per term, so that differences stand side by side."""
    from rich.table import Table

    candidates = sorted(answer.candidates, key=lambda candidate: candidate.cost_seconds)
    table = Table(show_edge=False, header_style="bold")
    table.add_column("")
    for candidate in candidates:
        table.add_column(f"{candidate.prefill_worker}\n→ {candidate.decode_worker}", justify="right")
    names = list(dict.fromkeys(term.name for candidate in candidates for term in candidate.terms))
    for name in names:
        table.add_row(name, *(_cell(candidate, name) for candidate in candidates))
    table.add_section()
    table.add_row("cost", *(f"{candidate.cost_seconds:.4f} s" for candidate in candidates), style="bold")
    table.add_row(
        "signal age (prefill, decode)",
        *(f"{c.prefill_signal_age_ms} ms, {c.decode_signal_age_ms} ms" for c in candidates),
    )
    return table


def _cell(candidate: admin_pb2.Candidate, name: str) -> str:
    for term in candidate.terms:
        if term.name == name:
            return f"{term.value:.5g} {term.unit}".rstrip()
    return "–"
