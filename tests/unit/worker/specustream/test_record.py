"""The mapped record: what was written is read, torn writes are not, and garbage is refused."""

import os
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.worker.specustream import record as module
from streamserve.worker.specustream.record import (
    DEPTHS,
    RING,
    Figures,
    Record,
    RecordError,
    RecordWriter,
    RequestRecord,
)

FIGURES = Figures(
    steps=9,
    depth=3,
    drafted_tokens=40,
    accepted_tokens=31,
    generation=7,
    config_step=2,
    step_base_seconds=0.01,
    depth_steps=tuple(range(DEPTHS)),
    drafted_by_position=tuple(range(16)),
    accepted_by_position=tuple(range(16, 32)),
    fallback="ValueError: no",
)


def pair(tmp_path: Path) -> tuple[RecordWriter, Record]:
    writer = RecordWriter(tmp_path / "record")
    return writer, Record.open(tmp_path / "record")


def test_a_new_record_reads_as_zeros(tmp_path: Path) -> None:
    assert pair(tmp_path)[1].snapshot() == Figures()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    writer, reader = pair(tmp_path)
    writer.write(FIGURES)
    assert reader.snapshot() == FIGURES


@given(
    values=st.dictionaries(st.sampled_from([f.name for f in fields(Figures) if f.type == "int"]), st.integers(0, 2**62))
)
def test_every_integer_comes_back_in_its_own_field(
    values: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    writer, reader = pair(tmp_path_factory.mktemp("record"))
    writer.write(replace(Figures(), **values))
    assert reader.snapshot() == replace(Figures(), **values)


def test_a_finished_request_is_found_and_a_stranger_is_not(tmp_path: Path) -> None:
    writer, reader = pair(tmp_path)
    writer.finish("a", RequestRecord(0b101, 40, 31, 12, 256, 2))
    assert reader.finished("a") == RequestRecord(0b101, 40, 31, 12, 256, 2)
    assert reader.finished("b") is None


def test_the_newest_of_two_with_the_same_id_wins(tmp_path: Path) -> None:
    writer, reader = pair(tmp_path)
    for attempt in (1, 2):
        writer.finish("a", RequestRecord(attempt, 0, 0, 0))
        writer.write(Figures(finished_requests=attempt))
    assert reader.finished("a") == RequestRecord(2, 0, 0, 0)


def test_an_earlier_request_with_the_same_id_is_not_taken_for_one_that_has_no_entry_yet(tmp_path: Path) -> None:
    writer, reader = pair(tmp_path)
    writer.finish("a", RequestRecord(1, 0, 0, 0, added_at=5.0))
    writer.write(Figures(finished_requests=1))
    assert reader.finished("a", since=5.5) is None
    writer.finish("a", RequestRecord(2, 0, 0, 0, added_at=6.0))
    assert reader.finished("a", since=5.5) == RequestRecord(2, 0, 0, 0, added_at=6.0)


def test_the_ring_keeps_its_last_4096(tmp_path: Path) -> None:
    writer, reader = pair(tmp_path)
    for number in range(RING + 10):
        writer.finish(str(number), RequestRecord(number, 0, 0, 0))
    writer.write(Figures(finished_requests=RING + 10))
    assert reader.finished("9") is None
    assert reader.finished("10") == RequestRecord(10, 0, 0, 0)
    assert reader.finished(str(RING + 9)) == RequestRecord(RING + 9, 0, 0, 0)


def test_a_writer_put_off_in_the_middle_of_writing_holds_up_no_reader(tmp_path: Path) -> None:
    writer, reader = pair(tmp_path)
    writer.write(Figures(steps=7))
    other = module._SLOTS_AT[(writer._sequence + 1) & 1]
    with open(tmp_path / "record", "r+b") as file:
        file.seek(other)
        file.write(b"\xff" * 100)
    assert reader.snapshot().steps == 7


def test_a_reader_that_is_overtaken_each_time_keeps_the_figures_it_read_last(tmp_path: Path) -> None:
    writer, reader = pair(tmp_path)
    writer.write(Figures(steps=7))
    assert reader.snapshot().steps == 7

    class Moving:
        """A map whose sequence number is never the same twice."""

        def __init__(self) -> None:
            self.reads = 0

        def __call__(self, mapped: object, at: int) -> tuple[int]:
            self.reads += 1
            return (self.reads,)

    moving = Moving()
    original = module._SEQUENCE
    module._SEQUENCE = type("Struct", (), {"unpack_from": staticmethod(moving)})  # type: ignore[assignment]
    try:
        assert reader.snapshot().steps == 7
    finally:
        module._SEQUENCE = original
    assert moving.reads > 100


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\0" * module._SIZE])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "record").write_bytes(content)
    with pytest.raises(RecordError, match="not a scheduler record"):
        Record.open(tmp_path / "record")


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    pair(tmp_path)
    assert os.stat(tmp_path / "record").st_mode & 0o077 == 0


def test_an_old_record_at_the_same_path_is_started_over(tmp_path: Path) -> None:
    writer, _ = pair(tmp_path)
    writer.write(FIGURES)
    writer.finish("a", RequestRecord(1, 1, 1, 1))
    _, reader = pair(tmp_path)
    assert reader.snapshot() == Figures()
    assert reader.finished("a") is None
