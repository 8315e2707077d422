"""Would the engines take this spec's arguments? vLLM itself is asked before a running lane is stopped for an edit.

It is asked in a process of its own, at the lowest priority, for the import of vLLM alone takes some 15 s of a core. No
answer within CHECK_SECONDS is no refusal: a revision that does not start halts after its first lane. A simulator's
arguments are not checked here; `up` at its start does not ask either, for its engines refuse in the same way and as
early.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from streamserve.cli.up import commands
from streamserve.cli.up.commands import Site
from streamserve.cli.up.last_words import words_of
from streamserve.cli.up.reaper import signal_group
from streamserve.cli.up.supervisor import Reaper
from streamserve.contract.launch import engine_arguments
from streamserve.contract.streampair import StreamPair
from streamserve.contract.streampair.enums import EngineKind

CHECK_SECONDS: Final = 120.0
ROLES: Final = ("prefill", "decode")
_NAME: Final = "engine-check"


@dataclass(frozen=True, slots=True)
class Answer:
    """`refused` is what vLLM says against it, a line each; `unknown` why it could not be asked."""

    refused: tuple[str, ...] = ()
    unknown: str = ""


def questions(pair: StreamPair) -> list[list[str]]:
    """The engine flags of each role; empty for engines that are not asked."""
    spec = pair.spec
    if spec.engine.kind is not EngineKind.VLLM:
        return []
    draft = spec.speculation.draft
    return [engine_arguments(spec, role, model=spec.model.name, draft=draft.name if draft else None) for role in ROLES]


def is_new(old: StreamPair, new: StreamPair) -> bool:
    """True when `new` starts vLLM engines with flags that those of `old` do not have."""
    asked = questions(new)
    return bool(asked) and asked != questions(old)


def refusals(pair: StreamPair, answers: Sequence[str | None]) -> tuple[str, ...]:
    """One line per reason, under the field that is at fault as far as the roles tell."""
    reasons = dict(zip(ROLES, answers, strict=True))
    if reasons["prefill"] == reasons["decode"]:
        return (f"spec.engine.args: {reasons['prefill']}",) if reasons["prefill"] else ()
    own = {role: bool(getattr(pair.spec, role).engine.args) for role in ROLES}
    return tuple(
        f"spec.{role}.engine.args: {reason}" if own[role] else f"spec.engine.args (for {role}): {reason}"
        for role, reason in reasons.items()
        if reason
    )


async def ask(site: Site, reaper: Reaper, pair: StreamPair, timeout_seconds: float = CHECK_SECONDS) -> Answer:
    """vLLM's answer. The process ends with this call, whatever happens."""
    log = site.log_file(_NAME)
    try:
        with log.open("ab") as err:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "streamserve.worker.pipeserve.vllm_check"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=err,
                env={**site.environment, "TMPDIR": str(site.temporary), **commands.engine_environment(site, pair)},
                start_new_session=True,
            )
    except OSError as error:
        # No memory, too many processes or files, no space for the log: no reason to end what runs.
        return Answer(unknown=f"the check could not be started: {error}")
    reaper.add(process.pid)
    try:
        asked = json.dumps(questions(pair)).encode()
        out, _ = await asyncio.wait_for(process.communicate(asked), timeout_seconds)
        return Answer(refusals(pair, json.loads(out)["refused"]))
    except TimeoutError:
        return Answer(unknown=f"no answer within {timeout_seconds:.0f} s")
    except (ValueError, KeyError, TypeError):
        return Answer(unknown=f"{words_of(log) or 'no answer'}; log: {log}")
    finally:
        signal_group(process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 5.0)
        reaper.remove(process.pid)
