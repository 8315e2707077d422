"""What the rules call ours is what the operator's pods have: the contract cannot import the builders, a test can."""

from streamserve.contract.streampair.rules_pods import OWNED_LABELS, OWNED_PREFIX
from streamserve.contract.streampair.rules_volumes import OWNED_PATHS, OWNED_VOLUMES, WEIGHTS
from streamserve.operator import naming
from streamserve.operator.builders import parts, weights


def test_labels_of_every_child() -> None:
    own = naming.labels("", naming.ROUTER)
    assert {label for label in own if OWNED_PREFIX not in label} == set(OWNED_LABELS)


def test_volumes() -> None:
    assert {*parts.VOLUMES, *weights.VOLUMES} == set(OWNED_VOLUMES)


def test_places() -> None:
    assert list(WEIGHTS.values()) == [weights.MODEL_PATH, weights.DRAFT_PATH]
    directories = (parts.CONFIG_DIRECTORY, parts.TLS_DIRECTORY, parts.TOKEN_DIRECTORY)
    for place in (*directories, weights.MODEL_PATH, weights.DRAFT_PATH, "/tmp", "/dev/shm", "/dev/shm/x"):
        assert OWNED_PATHS.fullmatch(place), place
    for place in ("/tmp/cache", "/etc", "/etc/streamserver", "/models", "/models/targets", "/dev", "/cache"):
        assert not OWNED_PATHS.fullmatch(place), place
