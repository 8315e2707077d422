"""What runs in the client's pod, and what came of it.

TOKEN      one request to the gRPC port for tokens
REACH      which of some addresses take a connection
LOOP       one request after another, each from a process of its own: Traffic
STREAMS    long answers over some connections at once: Streams
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

# The token is what standard input holds; nothing: none is sent.
TOKEN = """
import json, sys
import grpc
from streamserve.v1 import common_pb2, inference_pb2, inference_pb2_grpc

target, tls = sys.argv[1:]
token = sys.stdin.read()
shown = [("authorization", "Bearer " + token)] if token else []
credentials = grpc.ssl_channel_credentials(open(f"{tls}/ca.crt", "rb").read())
sampling = common_pb2.SamplingParams(max_tokens=8, ignore_eos=True)
request = inference_pb2.GenerateRequest(prompt=common_pb2.Prompt(text="What is a tide?"), sampling=sampling)
with grpc.secure_channel(target, credentials) as channel:
    answer = inference_pb2_grpc.InferenceServiceStub(channel).Generate(request, metadata=shown, timeout=30)
    try:
        print(json.dumps({"tokens": sum(len(chunk.token_ids) for chunk in answer)}))
    except grpc.RpcError as error:
        print(json.dumps({"code": error.code().name}))
"""


# A policy drops what it does not let in: that is silence. A port where nobody listens refuses at once.
REACH = """
import json, socket, sys
said = {}
for target in sys.argv[1:]:
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 3).close()
        said[target] = "open"
    except TimeoutError:
        said[target] = "silent"
    except OSError as error:
        said[target] = str(error)
print(json.dumps(said))
"""


# Until it is told to stop, or has been forgotten. Each request is a process and a connection of its own: the worst case
# for a router that leaves.
LOOP = """
echo begun
end=$(($(date +%s) + {seconds}))
while [ ! -e {stop} ] && [ "$(date +%s)" -lt "$end" ]; do
  if {command} --max-tokens 32 "Tell me about tides" > /tmp/out 2> /tmp/err; then echo ok; else tail -1 /tmp/err; fi
done
[ -e {stop} ] || echo "the time for traffic is over"
rm -f {stop}
"""


@dataclass(slots=True)
class Traffic:
    """What became of the requests; known after the block."""

    answered: int = 0
    failed: list[str] = field(default_factory=list)

    def took(self, line: str) -> None:
        if line == "ok":
            self.answered += 1
        else:
            self.failed.append(line)


# Some users, each with a connection of its own, who read their answer before they ask again, until standard input ends.
STREAMS = """
import json, sys, threading, time
import grpc
from streamserve.v1 import common_pb2, inference_pb2, inference_pb2_grpc

target, tls, users, tokens, pause, seconds = sys.argv[1:]
ca, key, certificate = (open(f"{tls}/{name}", "rb").read() for name in ("ca.crt", "tls.key", "tls.crt"))
credentials = grpc.ssl_channel_credentials(ca, key, certificate)
over, speaking = threading.Event(), threading.Lock()

def tell(**said):
    with speaking:
        print(json.dumps(said), flush=True)

def ask(stub, user, number):
    sampling = common_pb2.SamplingParams(max_tokens=int(tokens), ignore_eos=True)
    prompt = common_pb2.Prompt(text=f"User {user} asks for the {number}th time about tides.")
    began, lane, got = time.time(), "", 0
    try:
        for chunk in stub.Generate(inference_pb2.GenerateRequest(prompt=prompt, sampling=sampling), timeout=60):
            got = max(got, chunk.first_token_index + len(chunk.token_ids))
            if chunk.HasField("route"):
                lane = chunk.route.lane
                tell(user=user, lane=lane, began=began)
    except grpc.RpcError as error:
        tell(user=user, failed=f"{error.code()}: {error.details()}")
        return
    if got < int(tokens):
        tell(user=user, failed=f"ended after {got} tokens of {tokens}")
        return
    tell(user=user, lane=lane, began=began, ended=time.time())

def live(user):
    number, options = 0, [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(target, credentials, options) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        while not over.wait(float(pause)):
            number += 1
            ask(stub, user, number)

def time_out():
    tell(user=-1, failed="the time for streams is over")
    over.set()

print("begun", flush=True)
living = [threading.Thread(target=live, args=(user,)) for user in range(int(users))]
[each.start() for each in living]
ended = threading.Timer(float(seconds), time_out)
ended.daemon = True
ended.start()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
[each.join() for each in living]
"""


@dataclass(frozen=True, slots=True)
class Stream:
    """One answer, whole. Times are seconds since the epoch, of a clock that all pods here share with the tests."""

    lane: str
    began: float
    ended: float


@dataclass(slots=True)
class Streams:
    """`running`: of each user whose answer has begun, the lane and when it was asked for, as of now. What was answered
    is all known after the block."""

    answered: list[Stream] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    running: dict[int, tuple[str, float]] = field(default_factory=dict)

    def follow(self, lines: Iterable[str]) -> None:
        for line in lines:
            said = json.loads(line)
            user: int = said["user"]
            if "failed" in said:
                self.running.pop(user, None)
                self.failed.append(said["failed"])
            elif "ended" in said:
                self.running.pop(user, None)
                self.answered.append(Stream(said["lane"], said["began"], said["ended"]))
            else:
                self.running[user] = (said["lane"], said["began"])

    def lanes(self, since: float = 0.0) -> set[str]:
        """Where answers come from now, of those that were asked for after `since`."""
        return {lane for lane, began in tuple(self.running.values()) if began > since}

    def across(self, time: float, lane: str = "") -> list[Stream]:
        """Those that had begun by then and were not at their end."""
        return [each for each in self.answered if each.began < time < each.ended and lane in ("", each.lane)]

    def longest_gap(self, begin: float, end: float) -> float:
        """Seconds in which no answer was under way, between the two times."""
        at, longest = begin, 0.0
        for each in sorted(self.answered, key=lambda each: each.began):
            if each.began >= end:
                break
            longest = max(longest, each.began - at)
            at = max(at, each.ended)
        return max(longest, end - at)
