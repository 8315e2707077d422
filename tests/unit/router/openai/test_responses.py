"""Answers in OpenAI's shapes, where the worker says less than it might."""

import json
import math

import pytest

from streamserve.contract.errors import InvalidRequest
from streamserve.router.fronts.openai import responses
from streamserve.router.fronts.openai.responses import Answer
from streamserve.v1 import common_pb2, inference_pb2


def answer(chat: bool, *rows: common_pb2.TokenLogprobs) -> dict[str, object]:
    grown = Answer(chat=chat, id="a", model="tiny", created=1)
    grown.add(inference_pb2.GenerateResponse(text="x", logprobs=rows, finish_reason=common_pb2.FINISH_REASON_LENGTH))
    choice: dict[str, dict[str, object]] = json.loads(grown.whole())["choices"][0]
    return choice["logprobs"]


@pytest.mark.parametrize(
    "text", [None, "", " tide", "\u00e9"], ids=["of no text", "of half a character", "word", "accent"]
)
def test_a_token_is_named_by_its_text_or_else_by_its_id(text: str | None) -> None:
    top = common_pb2.TopLogprob(token_id=9, logprob=-math.inf, text=text)
    row = common_pb2.TokenLogprobs(token_id=7, logprob=-0.5, text=text, top=[top])
    names = ["token_id:7", "token_id:9"] if text is None else [text, text]
    written = None if text is None else list(text.encode())
    said = {"token": names[1], "logprob": -9999.0, "bytes": written}
    assert answer(True, row)["content"] == [
        {"token": names[0], "logprob": -0.5, "bytes": written, "top_logprobs": [said]}
    ]
    assert answer(False, row) == {
        "tokens": [names[0]],
        "token_logprobs": [-0.5],
        "top_logprobs": [{names[1]: -9999.0}],
        "text_offset": [0],
    }


@pytest.mark.parametrize(
    ("field", "param"),
    [
        *(("prompt.chat", "messages"), ("prompt.token_ids", "prompt"), ("prompt", "prompt"), ("prompt.1", "prompt.1")),
        *(("sampling.top_p", "top_p"), ("model", "model"), (None, None)),
    ],
)
def test_a_refusal_names_the_parameter_as_the_client_wrote_it(field: str | None, param: str | None) -> None:
    body = json.loads(responses.error_body(InvalidRequest("no", field=field)))
    assert body["error"]["param"] == param
