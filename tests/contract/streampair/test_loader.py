"""What a reader is told about a file: the place, the sentence, the suggestion; and that nothing ever escapes."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO

from streamserve.contract.streampair import Problem, StreamPair, load, read
from streamserve.contract.streampair.nodes import MAX_BYTES

HEAD = "apiVersion: streamserve.io/v1alpha1\nkind: StreamPair\nmetadata: {name: llama}\nspec:\n  model: {name: m}\n"

# The text after HEAD (line 6 on), and every line that a reader sees.
SENTENCES = {
    "an unknown field names its neighbour": (
        "  speculation: {maxDepht: 6}\n",
        ["6:17: spec.speculation.maxDepht: unknown field (did you mean spec.speculation.maxDepth?)"],
    ),
    "a field in the wrong part names its own part": (
        "  maxDepth: 6\n",
        ["6:3: spec.maxDepth: unknown field (did you mean spec.speculation.maxDepth?)"],
    ),
    "a section in the wrong part names its own part": (
        "  depth: {min: 1}\n",
        ["6:3: spec.depth: unknown field (did you mean spec.speculation.depth?)"],
    ),
    "the Python spelling of a field is unknown": (
        "  failure_policy: Strict\n",
        ["6:3: spec.failure_policy: unknown field (did you mean spec.failurePolicy?)"],
    ),
    "a field like no other gets no suggestion": ("  qqqqqq: 1\n", ["6:3: spec.qqqqqq: unknown field"]),
    "text where a number belongs": (
        '  lanes: "2"\n',
        ['6:10: spec.lanes: must be a whole number, is "2" (did you mean 2?)'],
    ),
    "true where a number belongs": ("  lanes: true\n", ["6:10: spec.lanes: must be a whole number, is true"]),
    "a number where text belongs": (
        "  engine: {args: {max-model-len: 8192}}\n",
        ['6:34: spec.engine.args.max-model-len: must be text, is the number 8192 (did you mean "8192"?)'],
    ),
    "yes where true belongs": (
        "  paused: yes\n",
        ['6:11: spec.paused: must be true or false, is "yes" (did you mean true?)'],
    ),
    "nothing where a number belongs": ("  lanes:\n", ["6:3: spec.lanes: must be a whole number, is empty"]),
    "a number out of bounds": (
        "  speculation: {maxDepth: 17}\n",
        ["6:27: spec.speculation.maxDepth: must be at most 16, is the number 17"],
    ),
    "a number that is octal to kubectl": (
        "  lanes: 010\n",
        ["6:10: spec.lanes: '010' begins with a zero, octal to kubectl: write it without, or in quotes"],
    ),
    "text that is a number to kubectl": (
        "  engine: {args: {revision: 0X1F, seed: 1e1_0}}\n",
        [
            "6:29: spec.engine.args.revision: '0X1F' is a number to kubectl: write it in quotes, or in decimal",
            "6:41: spec.engine.args.seed: '1e1_0' is a number to kubectl: write it in quotes, or in decimal",
        ],
    ),
    "numbers that are text to kubectl": (
        "  decode: {template: {affinity: {x: ._5, z: 1e400}}}\n",
        [
            "6:37: spec.decode.template.affinity.x: '._5' cannot be read as float: correct it, or write it in quotes",
            "6:45: spec.decode.template.affinity.z: '1e400' cannot be read as float: correct it, or write it in quotes",
        ],
    ),
    "a negative number of lanes": ("  lanes: -1\n", ["6:10: spec.lanes: must be at least 0, is the number -1"]),
    "an enum in lower case": (
        "  failurePolicy: degrade\n",
        [
            '6:18: spec.failurePolicy: must be one of Strict, Degrade, is "degrade" (did you mean Degrade?)',
        ],
    ),
    "a bare false where Off was meant": (
        "  speculation: {policy: false}\n",
        [
            "6:25: spec.speculation.policy: must be one of Goodput, Static, Fixed, Ema, PaperShape, Off, is false "
            '(did you mean "Off"?)'
        ],
    ),
    "a workload name that is too long": (
        f"  slo: {{workloads: [{{name: {'a' * 33}}}]}}\n",
        ["6:28: spec.slo.workloads[0].name: must have at most 32 characters, has 33"],
    ),
    "sixty-five workloads": (
        f"  slo: {{workloads: [{', '.join(f'{{name: w{i}}}' for i in range(65))}]}}\n",
        ["6:20: spec.slo.workloads: must have at most 64 entries: remove some"],
    ),
    "a list where a mapping belongs": ("  slo: [1]\n", ["6:8: spec.slo: must be a mapping, is a list"]),
    "a row without its name": (
        "  slo: {workloads: [{tpotMilliseconds: 3}]}\n",
        ["6:21: spec.slo.workloads[0].name: is required: add it"],
    ),
    "a rule, shown at the field that is to change": (
        "  speculation:\n    depth:\n      min: 5\n      max: 3\n",
        ["8:12: spec.speculation.depth.min: 5 is above the maximum depth 3: lower min or raise max"],
    ),
    "a rule about a field that is not written, shown at its parent": (
        "  speculation:\n    method: Eagle3\n",
        ["6:3: spec.speculation.draft: is required by method Eagle3: give draft.name, or choose method Ngram or None"],
    ),
    "what is not built says so and hides the rule that would say it again": (
        "  speculation: {method: Suffix}\n",
        [
            "6:25: spec.speculation.method: Suffix is not in this release: "
            "use None, DraftModel, Eagle, Eagle3, Mtp or Ngram"
        ],
    ),
    "an owned flag says what to set in its place": (
        "  engine: {args: {served-model-name: x}}\n",
        [
            "6:38: spec.engine.args.served-model-name: served-model-name is set by StreamServe: remove it; "
            "set spec.model.servedNames"
        ],
    ),
    "a key given twice": ("  lanes: 1\n  lanes: 2\n", ["7:3: spec.lanes: is given twice, first on line 6: remove one"]),
    "a pod field that the overlay does not have": (
        "  prefill: {template: {hostNetwork: true}}\n",
        ["6:24: spec.prefill.template.hostNetwork: unknown field"],
    ),
    "several at once, in the order of the file": (
        "  lanes: -1\n  engine: {args: {port: '1'}}\n  update: {maxUnavailable: 0}\n  slo: {defalt: {}}\n",
        [
            "6:10: spec.lanes: must be at least 0, is the number -1",
            "7:25: spec.engine.args.port: port is set by StreamServe: remove it; "
            "the worker's address is chosen by `streamserve up` or the operator",
            "8:28: spec.update.maxUnavailable: and maxSurge are both 0, so no lane could ever be replaced: "
            "set one of them to 1",
            "9:9: spec.slo.defalt: unknown field (did you mean spec.slo.default?)",
        ],
    ),
    "a number that JSON does not have, in a part handed through": (
        "  decode: {template: {affinity: {x: [.nan]}}}\n",
        ["6:33: spec.decode.template.affinity: contains a number that JSON does not have: write a finite one"],
    ),
    "a tag": ("  lanes: !!python/name:os.system x\n", None),
    "malformed in the middle": (
        "  slo: {default: [}\n",
        ["6:19: malformed YAML: expected the node content, but found '}'"],
    ),
}

WHOLE_FILES: dict[str, tuple[str | bytes, str]] = {
    "an empty file": ("", "the file is empty"),
    "comments only": ("# nothing\n", "the file is empty"),
    "a list": ("- a\n", "the document is a list"),
    "a word": ("hello\n", 'the document is "hello"'),
    "two documents": (HEAD + "---\n" + HEAD, "a second document begins here"),
    "no apiVersion": ("kind: StreamPair\n", "apiVersion: is required"),
    "another apiVersion": (HEAD.replace("v1alpha1", "v1"), "apiVersion: must be streamserve.io/v1alpha1"),
    "another kind": (HEAD.replace("StreamPair", "Pod"), "kind: must be StreamPair"),
    "no UTF-8": (b"a: \xff\n", "is not UTF-8"),
    "a control character": ("a: \x07\n", "is a character that YAML forbids"),
    "half a surrogate pair": ('a: "\\uD800"\n', "is no Unicode text"),
    "ten megabytes": ("a: 1\n" * 2_000_000, f"at most {MAX_BYTES}"),
    "brackets without end": ("[" * 5_000, "nested too deeply"),
    "an alias that contains itself": ("&a [*a]\n", "contains itself"),
    "an alias without anchor": ("a: *b\n", "no anchor"),
    "aliases that multiply": (
        "a: &a [1,1,1,1,1,1,1,1]\n"
        + "".join(f"{y}: &{y} [{','.join(['*' + x] * 8)}]\n" for x, y in zip("abcdefg", "bcdefgh", strict=True)),
        "aliases expanded",
    ),
    "a number of a thousand digits": (HEAD + f"  lanes: {'9' * 1000}\n", "cannot be read as int"),
    "a key that is a list": (HEAD + "  ? [1]\n  : 2\n", "a key that is no plain text"),
    "a key that is a number": (HEAD + "  1: 2\n", "a key that is no plain text"),
    "a key that is true to kubectl": (
        HEAD + "  router: {template: {labels: {on: a}}}\n",
        "6:32: spec.router.template.labels: has a key that is no plain text: write the key in quotes",
    ),
    "a key that is a number to kubectl": (HEAD + "  0X1F: 2\n", "a key that is no plain text"),
    "nothing but the marks of documents": ("---\n---\n", "the file is empty"),
    "two documents, one of them empty, and a third": (HEAD + "---\n---\n" + HEAD, "8:1: a second document begins here"),
}


def lines(text: str | bytes) -> list[str]:
    result = load(text)
    assert isinstance(result, list), "the text was accepted"
    return [problem.format("f").removeprefix("f:") for problem in result]


@pytest.mark.parametrize("name", SENTENCES)
def test_the_reader_sees(name: str) -> None:
    text, wanted = SENTENCES[name]
    seen = lines(HEAD + text)
    if wanted is None:
        assert "has the tag" in seen[0]
    else:
        assert seen == wanted


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_a_file_that_is_no_stream_pair(name: str) -> None:
    text, wanted = WHOLE_FILES[name]
    assert any(wanted in line for line in lines(text)), lines(text)


def test_a_byte_order_mark_and_anchors_and_merges_are_fine() -> None:
    text = "\ufeff" + HEAD + "  prefill: &role {replicas: 2}\n  decode: {<<: *role, scaling: {mode: Fixed}}\n"
    pair = load(text.encode())
    assert isinstance(pair, StreamPair)
    assert pair.spec.decode.replicas == 2


@pytest.mark.parametrize("text", [HEAD + "---\n", HEAD + "---\n# the end\n---\n", "---\n---\n" + HEAD + "...\n"])
def test_a_document_of_which_only_the_mark_is_there_is_none(text: str) -> None:
    assert isinstance(load(text), StreamPair)


@pytest.mark.parametrize(
    ("written", "lanes"), {"0": 0, "8": 8, "+8": 8, "0o10": 8, "0x10": 16, "0b11": 3, "1_0": 10}.items()
)
def test_a_number_that_yaml_1_1_and_1_2_read_alike_is_read(written: str, lanes: int) -> None:
    pair = load(HEAD + f"  lanes: {written}\n")
    assert isinstance(pair, StreamPair)
    assert pair.spec.lanes == lanes


def test_a_long_row_of_digits_is_read_at_once() -> None:
    (line,) = lines(HEAD + f"  engine: {{args: {{seed: {'1' * 100_000}x}}}}\n")
    assert "must have at most" in line


def test_a_key_that_wins_over_a_merged_one_is_shown_where_it_stands() -> None:
    text = (
        "  prefill: &role\n"
        "    engine: {args: {seed: '1'}}\n"
        "    replicas: 2\n"
        "  decode:\n"
        "    <<: *role\n"
        "    replicas: 99\n"
        "    engine: {args: {seed: 2}}\n"
    )
    assert [line.partition(": ")[0::2] for line in lines(HEAD + text)] == [
        ("11:15", "spec.decode.replicas: must be at most 8, is the number 99"),
        ("12:27", 'spec.decode.engine.args.seed: must be text, is the number 2 (did you mean "2"?)'),
    ]


@pytest.mark.parametrize("namespace", ["9team", "3", "team-a", "a" * 63])
def test_a_pair_may_be_in_any_namespace_that_kubernetes_makes(namespace: str) -> None:
    pair = load(HEAD.replace("name: llama", f"name: llama, namespace: '{namespace}'"))
    assert isinstance(pair, StreamPair)
    assert pair.metadata.namespace == namespace


@pytest.mark.parametrize("namespace", ["Team", "-a", "a-", "a.b", "a" * 64, ""])
def test_a_namespace_that_kubernetes_does_not_make_is_refused(namespace: str) -> None:
    (line,) = lines(HEAD.replace("name: llama", f"name: llama, namespace: '{namespace}'"))
    assert line.startswith("3:")
    assert "metadata.namespace: " in line


def test_what_kubectl_prints_is_accepted() -> None:
    server = "  uid: u\n  generation: 3\n  resourceVersion: '7'\n  creationTimestamp: 2026-11-21T11:00:00Z\n"
    text = HEAD.replace("metadata: {name: llama}\n", "metadata:\n  name: llama\n" + server)
    status = "status:\n  lanes: 2\n  conditions: [{type: Ready, status: 'True', reason: R, message: m}]\n"
    pair = load(text + status)
    assert isinstance(pair, StreamPair)
    assert (pair.metadata.generation, pair.metadata.uid) == (3, "u")


def test_a_bare_word_that_kubectl_would_read_as_a_boolean_is_remembered() -> None:
    loaded = read(HEAD + "  speculation: {policy: Off}\n")
    assert loaded.pair is not None
    assert loaded.document.bare_words == [("spec", "speculation", "policy")]


def test_at_most_a_hundred_problems_are_listed() -> None:
    found = load(HEAD + "".join(f"  q{i}: 1\n" for i in range(300)))
    assert isinstance(found, list)
    assert len(found) == 100
    assert found[-1].message == "201 more problems: mend these first"


def assert_answers(text: str | bytes) -> None:
    result = load(text)
    if isinstance(result, list):
        assert result
        for problem in result:
            assert isinstance(problem, Problem)
            assert problem.line >= 1
            assert problem.column >= 1
            problem.format("f").encode()


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=300) | st.binary(max_size=300))
def test_random_text_and_bytes_are_answered(text: str | bytes) -> None:
    assert_answers(text)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="{}[]:,-?&*!|>'\"%@` \n\tab1.~#<\\", max_size=120))
def test_random_yaml_punctuation_is_answered(text: str) -> None:
    assert_answers(text)
    assert_answers(HEAD + "  " + text)


WORDS = ["spec", "model", "name", "speculation", "depth", "min", "max", "maxDepth", "method", "policy", "draft"]
WORDS += ["slo", "workloads", "engine", "args", "prefill", "template", "env", "resources", "limits", "lanes"]
WORDS += ["source", "hub", "staticTable", "nvidia.com/gpu", "tensor-parallel-size", "<<", "[key]", ""]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["Goodput", "Eagle3", "2"])
)
TREES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(WORDS), TREES, max_size=6), TREES)
def test_random_structures_are_answered(spec: dict[str, Any], status: Any) -> None:
    document = {
        "apiVersion": "streamserve.io/v1alpha1",
        "kind": "StreamPair",
        "metadata": {"name": "a"},
        "spec": {"model": {"name": "m"}, **spec},
        "status": status,
    }
    out = StringIO()
    YAML(typ="safe", pure=True).dump(document, out)
    assert_answers(out.getvalue())
