"""SpecuStream inside vLLM's scheduler: `--scheduler-cls streamserve.worker.specustream.hook.scheduler`.

vLLM calls the factory where it would call a class. It derives from the scheduler that vLLM itself would have taken
(a plain Scheduler under async scheduling silently stops speculating), and sets the depth in `_update_after_schedule`,
before vLLM's own, because AsyncScheduler makes its placeholders there. Drafts of a step are verified in the next one.

Losslessness: the depth depends on past acceptance, past times and the number of requests, never on a drafted token;
rejection sampling then leaves the distribution of every position as it was.

A lowered bound holds at once: drafts already made under the old bound are cut when the configuration is adopted, so
no step that is scheduled afterwards drafts or verifies deeper than the new one allows. In async mode steps that are
already in flight finish as scheduled.
"""

from __future__ import annotations

import json
import logging
import time
from random import Random
from typing import Any

from streamserve.worker.pipeserve import compat, handover, lifeline, shm_wait
from streamserve.worker.specustream.driver import Driver
from streamserve.worker.specustream.policy import Adopted, Configure, DepthPolicy
from streamserve.worker.specustream.record import RecordWriter

logger = logging.getLogger(__name__)

CONFIGURE = "streamserve_configure"
"""Name of the utility that AsyncLLM calls to swap the policy."""
RELEASE = "streamserve_release"
"""Name of the utility that frees a computed prompt nobody will pull any more; takes the id that AsyncLLM was given."""


def scheduler(*args: Any, **kwargs: Any) -> Any:
    """vLLM's scheduler with the mixin, built with vLLM's own arguments."""
    lifeline.hold_to_parent()
    handover.end_without_listener()
    compat.check()
    shm_wait.sleep_at_once()
    compat.add_engine_utility(CONFIGURE, _configure)
    compat.add_engine_utility(RELEASE, _release)
    vllm_config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
    base = compat.scheduler_base(vllm_config)
    return type("SpecuStreamScheduler", (SpecuStream, base), {})(*args, **kwargs)


def _configure(engine_core: Any, payload: str) -> str:
    """Runs on the engine's thread between two steps; returns the (generation, step) then in force as JSON."""
    adopted: Adopted = engine_core.scheduler.streamserve_configure(Configure.from_json(payload))
    return json.dumps({"generation": adopted.generation, "step": adopted.step})


def _release(engine_core: Any, request_id: str) -> int:
    return compat.release_held(engine_core.scheduler, request_id)


class SpecuStream:
    """The mixin. Every override does vLLM's work exactly once, whatever becomes of ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        this: Any = self
        settings = compat.settings_of(this.vllm_config)
        path = settings.get("record")
        self._driver = Driver(
            policy=DepthPolicy.from_mapping(settings.get("policy", {})),
            adopted=Adopted(int(settings.get("generation", 0)), int(settings.get("step", 0))),
            built_depth=compat.built_depth(this),
            writer=RecordWriter(path) if path else None,
            rng=Random(int(settings.get("seed", 0))),
            clock=time.monotonic,
            prefill_only=settings.get("role") == "prefill",
        )
        self._steered = compat.depth_is_variable(this)
        self._publish()

    def streamserve_configure(self, message: Configure) -> Adopted:
        """Swap the policy now, and cut pending drafts to the new bound."""
        adopted = self._driver.configure(message)
        if self._steered:
            compat.truncate_pending_drafts(self, self._driver.policy.ceiling)
        self._publish()
        return adopted

    def add_request(self, request: Any) -> None:
        super().add_request(request)  # type: ignore[misc]
        try:
            tokens = 1 if compat.arrives_with_kv(request) else int(request.num_prompt_tokens)
            self._driver.request_added(request.request_id, tokens)
            self._publish()
        except Exception as error:
            self._give_up(error)

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        try:
            self._steer(scheduler_output)
        except Exception as error:
            self._give_up(error)
        super()._update_after_schedule(scheduler_output)  # type: ignore[misc]

    def _steer(self, scheduler_output: Any) -> None:
        this: Any = self
        driver = self._driver
        decoding: list[str] = []
        sampling = prefill_tokens = 0
        for request, tokens in compat.scheduled(this, scheduler_output):
            computed = request.num_computed_tokens
            uncomputed = request.num_tokens + request.num_output_placeholders - computed
            if tokens >= uncomputed:
                sampling += 1
            if uncomputed <= 1 and computed >= request.num_prompt_tokens:
                decoding.append(request.request_id)
                continue
            # What a preempted request had already answered is computed again like a prompt.
            driver.request_received(request.request_id, *compat.received(request, this.block_size))
            driver.prompt_progress(request.request_id, max(uncomputed - tokens, 0))
            if uncomputed > 1:
                # A prompt that arrived whole computes one token: that is a decode step in all but name.
                prefill_tokens += min(tokens, uncomputed)
        if not scheduler_output.total_num_scheduled_tokens:
            return
        depth = driver.step_scheduled(
            decoding=decoding,
            sampling=sampling,
            prefill_tokens=prefill_tokens,
            verified=compat.verified_depth(scheduler_output),
            static_depth=compat.planned_depth(scheduler_output),
        )
        if self._steered:
            compat.set_planned_depth(scheduler_output, depth)

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)  # type: ignore[misc]
        try:
            self._driver.prompt_progress(request.request_id, int(request.num_tokens))
        except Exception as error:
            self._give_up(error)

    def make_spec_decoding_stats(self, *args: Any, **kwargs: Any) -> Any:
        try:
            self._learn(**kwargs)
        except Exception as error:
            self._give_up(error)
        return super().make_spec_decoding_stats(*args, **kwargs)  # type: ignore[misc]

    def _learn(
        self,
        *,
        num_draft_tokens: int,
        num_accepted_tokens: int,
        num_invalid_spec_tokens: dict[str, int] | None,
        request_id: str,
        **_: Any,
    ) -> None:
        this: Any = self
        if num_invalid_spec_tokens:
            # Drafts that a grammar forbade were never judged by the model.
            num_draft_tokens -= num_invalid_spec_tokens.get(request_id, 0)
        request = this.requests.get(request_id)
        room = this.max_model_len - request.num_computed_tokens if request is not None else 0
        self._driver.draft_judged(
            request_id,
            num_draft_tokens,
            num_accepted_tokens,
            representative=room > 2 * compat.built_depth(this),
        )

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        outputs = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        try:
            if scheduler_output.total_num_scheduled_tokens:
                self._driver.step_done()
            this: Any = self
            if not this.running or not scheduler_output.total_num_scheduled_tokens:
                self._driver.idle()
            self._publish()
        except Exception as error:
            self._give_up(error)
        return outputs

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            self._driver.request_finished(request.request_id, compat.external_id(request.request_id))
        except Exception as error:
            self._give_up(error)
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]

    def finish_requests(self, *args: Any, **kwargs: Any) -> Any:
        finished = super().finish_requests(*args, **kwargs)  # type: ignore[misc]
        try:
            self._publish()
        except Exception as error:
            self._give_up(error)
        return finished

    def _publish(self) -> None:
        driver = self._driver
        driver.running, driver.waiting = compat.request_counts(self)
        driver.free_blocks, driver.total_blocks = compat.block_counts(self)
        driver.publish()

    def _give_up(self, error: Exception) -> None:
        """Keep the engine: depths come from vLLM's static table from now on, and the record says why."""
        self._driver.failed(error)
        logger.exception("SpecuStream gave up its law; depths are static until the next configuration")
