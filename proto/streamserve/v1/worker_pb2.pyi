from streamserve.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Dispatch(_message.Message):
    __slots__ = ("router_id", "sequence")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    router_id: int
    sequence: int
    def __init__(self, router_id: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class PrefillRequest(_message.Message):
    __slots__ = ("request_id", "attempt", "prompt", "sampling", "workload", "priority", "dispatch", "final")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DISPATCH_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    prompt: _common_pb2.Prompt
    sampling: _common_pb2.SamplingParams
    workload: str
    priority: int
    dispatch: Dispatch
    final: bool
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., prompt: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., workload: _Optional[str] = ..., priority: _Optional[int] = ..., dispatch: _Optional[_Union[Dispatch, _Mapping]] = ..., final: _Optional[bool] = ...) -> None: ...

class PrefillResponse(_message.Message):
    __slots__ = ("prompt_token_ids", "kv_handle", "cached_prompt_tokens", "answer", "load")
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    KV_HANDLE_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    prompt_token_ids: _common_pb2.TokenIds
    kv_handle: bytes
    cached_prompt_tokens: int
    answer: DecodeResponse
    load: LoadReport
    def __init__(self, prompt_token_ids: _Optional[_Union[_common_pb2.TokenIds, _Mapping]] = ..., kv_handle: _Optional[bytes] = ..., cached_prompt_tokens: _Optional[int] = ..., answer: _Optional[_Union[DecodeResponse, _Mapping]] = ..., load: _Optional[_Union[LoadReport, _Mapping]] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("request_id", "attempt", "prompt", "sampling", "workload", "priority", "dispatch", "kv_handle", "cached_prompt_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DISPATCH_FIELD_NUMBER: _ClassVar[int]
    KV_HANDLE_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    prompt: _common_pb2.Prompt
    sampling: _common_pb2.SamplingParams
    workload: str
    priority: int
    dispatch: Dispatch
    kv_handle: bytes
    cached_prompt_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., prompt: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., workload: _Optional[str] = ..., priority: _Optional[int] = ..., dispatch: _Optional[_Union[Dispatch, _Mapping]] = ..., kv_handle: _Optional[bytes] = ..., cached_prompt_tokens: _Optional[int] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("first_token_index", "token_ids", "text", "logprobs", "finish_reason", "usage", "load")
    FIRST_TOKEN_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    first_token_index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprobs]
    finish_reason: _common_pb2.FinishReason
    usage: _common_pb2.Usage
    load: LoadReport
    def __init__(self, first_token_index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprobs, _Mapping]]] = ..., finish_reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., load: _Optional[_Union[LoadReport, _Mapping]] = ...) -> None: ...

class DecodeManyRequest(_message.Message):
    __slots__ = ("start", "cancel", "pause", "resume")
    START_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    start: DecodeCall
    cancel: int
    pause: int
    resume: int
    def __init__(self, start: _Optional[_Union[DecodeCall, _Mapping]] = ..., cancel: _Optional[int] = ..., pause: _Optional[int] = ..., resume: _Optional[int] = ...) -> None: ...

class DecodeCall(_message.Message):
    __slots__ = ("call", "request", "timeout_ms")
    CALL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    call: int
    request: DecodeRequest
    timeout_ms: int
    def __init__(self, call: _Optional[int] = ..., request: _Optional[_Union[DecodeRequest, _Mapping]] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class DecodeManyResponse(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[DecodePart]
    def __init__(self, parts: _Optional[_Iterable[_Union[DecodePart, _Mapping]]] = ...) -> None: ...

class DecodePart(_message.Message):
    __slots__ = ("call", "response", "ended", "error")
    CALL_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    call: int
    response: bytes
    ended: bool
    error: bytes
    def __init__(self, call: _Optional[int] = ..., response: _Optional[bytes] = ..., ended: _Optional[bool] = ..., error: _Optional[bytes] = ...) -> None: ...

class LoadReport(_message.Message):
    __slots__ = ("signals", "engine_seconds")
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    signals: bytes
    engine_seconds: float
    def __init__(self, signals: _Optional[bytes] = ..., engine_seconds: _Optional[float] = ...) -> None: ...

class AbortRequest(_message.Message):
    __slots__ = ("request_id", "attempt")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class AbortResponse(_message.Message):
    __slots__ = ("found",)
    FOUND_FIELD_NUMBER: _ClassVar[int]
    found: bool
    def __init__(self, found: _Optional[bool] = ...) -> None: ...

class GetStateRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStateResponse(_message.Message):
    __slots__ = ("worker", "signals", "config_generation", "config_step", "config_error", "kv", "vocabulary_size", "max_model_tokens", "max_running_requests", "depth_histogram", "kv_bytes_received", "kv_transfers_received", "kv_transfers_failed", "kv_bytes_expected", "running_requests", "kv_blocks_used")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_GENERATION_FIELD_NUMBER: _ClassVar[int]
    CONFIG_STEP_FIELD_NUMBER: _ClassVar[int]
    CONFIG_ERROR_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    DEPTH_HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    KV_TRANSFERS_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    KV_TRANSFERS_FAILED_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_EXPECTED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_USED_FIELD_NUMBER: _ClassVar[int]
    worker: WorkerEndpoint
    signals: bytes
    config_generation: int
    config_step: int
    config_error: str
    kv: KvGeometry
    vocabulary_size: int
    max_model_tokens: int
    max_running_requests: int
    depth_histogram: _containers.RepeatedScalarFieldContainer[int]
    kv_bytes_received: int
    kv_transfers_received: int
    kv_transfers_failed: int
    kv_bytes_expected: int
    running_requests: int
    kv_blocks_used: int
    def __init__(self, worker: _Optional[_Union[WorkerEndpoint, _Mapping]] = ..., signals: _Optional[bytes] = ..., config_generation: _Optional[int] = ..., config_step: _Optional[int] = ..., config_error: _Optional[str] = ..., kv: _Optional[_Union[KvGeometry, _Mapping]] = ..., vocabulary_size: _Optional[int] = ..., max_model_tokens: _Optional[int] = ..., max_running_requests: _Optional[int] = ..., depth_histogram: _Optional[_Iterable[int]] = ..., kv_bytes_received: _Optional[int] = ..., kv_transfers_received: _Optional[int] = ..., kv_transfers_failed: _Optional[int] = ..., kv_bytes_expected: _Optional[int] = ..., running_requests: _Optional[int] = ..., kv_blocks_used: _Optional[int] = ...) -> None: ...

class WorkerEndpoint(_message.Message):
    __slots__ = ("id", "role", "lane", "revision", "address", "boot_id", "pair_uid", "engine", "engine_version")
    ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    PAIR_UID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    id: str
    role: str
    lane: str
    revision: str
    address: str
    boot_id: int
    pair_uid: str
    engine: str
    engine_version: str
    def __init__(self, id: _Optional[str] = ..., role: _Optional[str] = ..., lane: _Optional[str] = ..., revision: _Optional[str] = ..., address: _Optional[str] = ..., boot_id: _Optional[int] = ..., pair_uid: _Optional[str] = ..., engine: _Optional[str] = ..., engine_version: _Optional[str] = ...) -> None: ...

class KvGeometry(_message.Message):
    __slots__ = ("block_tokens", "bytes_per_block", "total_blocks", "target_layers", "draft_layers", "dtype")
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_BLOCK_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TARGET_LAYERS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_LAYERS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    block_tokens: int
    bytes_per_block: int
    total_blocks: int
    target_layers: int
    draft_layers: int
    dtype: str
    def __init__(self, block_tokens: _Optional[int] = ..., bytes_per_block: _Optional[int] = ..., total_blocks: _Optional[int] = ..., target_layers: _Optional[int] = ..., draft_layers: _Optional[int] = ..., dtype: _Optional[str] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("unfinished_requests",)
    UNFINISHED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    unfinished_requests: int
    def __init__(self, unfinished_requests: _Optional[int] = ...) -> None: ...
