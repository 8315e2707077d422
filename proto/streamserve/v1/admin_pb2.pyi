from streamserve.v1 import inference_pb2 as _inference_pb2
from streamserve.v1 import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LaneState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LANE_STATE_UNSPECIFIED: _ClassVar[LaneState]
    LANE_STATE_WAITING: _ClassVar[LaneState]
    LANE_STATE_PROBING: _ClassVar[LaneState]
    LANE_STATE_READY: _ClassVar[LaneState]
    LANE_STATE_FENCED: _ClassVar[LaneState]
LANE_STATE_UNSPECIFIED: LaneState
LANE_STATE_WAITING: LaneState
LANE_STATE_PROBING: LaneState
LANE_STATE_READY: LaneState
LANE_STATE_FENCED: LaneState

class GetFleetRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetFleetResponse(_message.Message):
    __slots__ = ("lanes", "queued_requests", "running_requests", "redis_connected")
    LANES_FIELD_NUMBER: _ClassVar[int]
    QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    REDIS_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    lanes: _containers.RepeatedCompositeFieldContainer[Lane]
    queued_requests: int
    running_requests: int
    redis_connected: bool
    def __init__(self, lanes: _Optional[_Iterable[_Union[Lane, _Mapping]]] = ..., queued_requests: _Optional[int] = ..., running_requests: _Optional[int] = ..., redis_connected: _Optional[bool] = ...) -> None: ...

class Lane(_message.Message):
    __slots__ = ("name", "revision", "state", "reason", "workers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    revision: str
    state: LaneState
    reason: str
    workers: _containers.RepeatedCompositeFieldContainer[WorkerView]
    def __init__(self, name: _Optional[str] = ..., revision: _Optional[str] = ..., state: _Optional[_Union[LaneState, str]] = ..., reason: _Optional[str] = ..., workers: _Optional[_Iterable[_Union[WorkerView, _Mapping]]] = ...) -> None: ...

class WorkerView(_message.Message):
    __slots__ = ("worker", "signals", "signal_age_ms", "booked_tokens", "booked_requests", "health")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    BOOKED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BOOKED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    worker: _worker_pb2.WorkerEndpoint
    signals: bytes
    signal_age_ms: int
    booked_tokens: int
    booked_requests: int
    health: str
    def __init__(self, worker: _Optional[_Union[_worker_pb2.WorkerEndpoint, _Mapping]] = ..., signals: _Optional[bytes] = ..., signal_age_ms: _Optional[int] = ..., booked_tokens: _Optional[int] = ..., booked_requests: _Optional[int] = ..., health: _Optional[str] = ...) -> None: ...

class ExplainRouteRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: _inference_pb2.GenerateRequest
    def __init__(self, request: _Optional[_Union[_inference_pb2.GenerateRequest, _Mapping]] = ...) -> None: ...

class ExplainRouteResponse(_message.Message):
    __slots__ = ("chosen", "candidates", "refused", "policy")
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    chosen: str
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    refused: _containers.RepeatedCompositeFieldContainer[Refusal]
    policy: str
    def __init__(self, chosen: _Optional[str] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., refused: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ..., policy: _Optional[str] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("lane", "prefill_worker", "decode_worker", "cost_seconds", "terms", "prefill_signal_age_ms", "decode_signal_age_ms", "reason")
    LANE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_WORKER_FIELD_NUMBER: _ClassVar[int]
    DECODE_WORKER_FIELD_NUMBER: _ClassVar[int]
    COST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_SIGNAL_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SIGNAL_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    lane: str
    prefill_worker: str
    decode_worker: str
    cost_seconds: float
    terms: _containers.RepeatedCompositeFieldContainer[Term]
    prefill_signal_age_ms: int
    decode_signal_age_ms: int
    reason: str
    def __init__(self, lane: _Optional[str] = ..., prefill_worker: _Optional[str] = ..., decode_worker: _Optional[str] = ..., cost_seconds: _Optional[float] = ..., terms: _Optional[_Iterable[_Union[Term, _Mapping]]] = ..., prefill_signal_age_ms: _Optional[int] = ..., decode_signal_age_ms: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Term(_message.Message):
    __slots__ = ("name", "value", "unit")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    unit: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., unit: _Optional[str] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("lane", "reason")
    LANE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    lane: str
    reason: str
    def __init__(self, lane: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class GetConfigRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetConfigResponse(_message.Message):
    __slots__ = ("pair_uid", "generation", "step", "config_json", "last_error")
    PAIR_UID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    pair_uid: str
    generation: int
    step: int
    config_json: str
    last_error: str
    def __init__(self, pair_uid: _Optional[str] = ..., generation: _Optional[int] = ..., step: _Optional[int] = ..., config_json: _Optional[str] = ..., last_error: _Optional[str] = ...) -> None: ...
