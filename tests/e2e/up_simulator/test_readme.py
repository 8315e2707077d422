"""What the README shows, copied out of it and run: a new user's first hour, on simulated engines.

Only addresses are put in place of the README's, because `up` listens on free ports here; every other character is
what the page says. The tests stand in the order of the page, and the last one makes its live edit.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

README = Path(__file__).parents[3] / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GRPC, HTTP = "127.0.0.1:50051", "http://127.0.0.1:8000"
# A machine that has Python and make need not have curl.
NO_CURL = """curl() { python -c '
import sys, urllib.request
_, _, url, _, header, _, body = sys.argv
name, value = header.split(": ")
with urllib.request.urlopen(urllib.request.Request(url, body.encode(), {name: value})) as answer:
    sys.stdout.buffer.writelines(answer)
' "$@"; }
"""


def block(language: str, *words: str) -> str:
    """The one fenced block of this language that begins with the first of `words` and has them all."""
    found = [
        text
        for kind, text in BLOCK.findall(README.read_text())
        if kind == language and text.startswith(words[0]) and all(word in text for word in words)
    ]
    assert len(found) == 1, f"README.md has {len(found)} {language} blocks with {words}, one is promised"
    return str(found[0])


def run(command: list[str]) -> str:
    """In an activated environment. What it says on stdout."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def shell(text: str) -> str:
    return run(["bash", "-o", "pipefail", "-c", text])


def generate(text: str, shared: Any) -> str:
    """A shell block that calls `streamserve generate`, sent to this `up`."""
    assert text.count("streamserve generate ") == 1
    return shell(text.replace("streamserve generate ", f"streamserve generate --server {shared.ready['grpc']} "))


def test_the_page_starts_what_these_tests_start(shared: Any) -> None:
    block("console", "make env\n", ". .venv/bin/activate\n", "streamserve up -f examples/local/streampair.yaml\n")
    example = README.parent / "examples" / "local" / "streampair.yaml"
    assert shared.file.read_text() == example.read_text().replace("../models", str(example.parents[1] / "models"))
    assert (Path(sys.executable).parent / "streamserve").exists()


def test_generate_prints_the_models_text(shared: Any) -> None:
    assert generate(block("console", "streamserve generate --max-tokens"), shared).strip()


def test_curl_streams_a_chat_completion(shared: Any) -> None:
    text = block("console", "curl ", "/v1/chat/completions", '"stream": true')
    assert text.count(HTTP) == 1
    said = shell(
        (NO_CURL if shutil.which("curl") is None else "") + text.replace(HTTP, f"http://{shared.ready['http']}")
    )
    events = [line.removeprefix("data: ") for line in said.splitlines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    pieces = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
    assert len([piece for piece in pieces if piece]) > 1, "it streams"


def test_the_python_client_has_fifteen_lines_and_prints_text_and_acceptance(shared: Any) -> None:
    text = block("python", "import grpc\n", "InferenceServiceStub", "stub.Generate(")
    assert text.count(GRPC) == 1
    assert len(text.splitlines()) <= 15
    said = run([sys.executable, "-c", text.replace(GRPC, shared.ready["grpc"])]).splitlines()
    assert "".join(said[:-1]).strip()
    accepted = re.fullmatch(r"accepted (\d+) of (\d+) drafted tokens", said[-1])
    assert accepted is not None
    assert 0 <= int(accepted[1]) <= int(accepted[2]) > 0


def test_the_live_edit_shows_in_the_next_generate(shared: Any) -> None:
    page = README.read_text()
    written = re.search(r"Open `(examples/local/streampair\.yaml)`, write `(depth: \{[^`]*\})`\s+and save", page)
    assert written is not None, "README.md tells no live edit of the YAML"
    following = block("console", "streamserve generate --json")
    assert page.index(written[0]) < page.index(following)

    def last() -> dict[str, Any]:
        usage: dict[str, Any] = json.loads(generate(following, shared))["usage"]
        return usage

    before = last()
    assert before["drafted_tokens"] > 0 and max(before["depths_seen"]) > 0
    old = re.search(r"depth: \{[^}]*\}", shared.file.read_text())
    assert old is not None
    told = shared.edit(old[0], written[2])
    line = shared.line("applied generation", after=told, seconds=10)
    assert re.search(r"in \d+ ms", line), "`up` says in how many milliseconds"
    after = last()
    assert (after["drafted_tokens"], after["depths_seen"]) == (0, [0])
    assert '"drafted_tokens": 0' in page
