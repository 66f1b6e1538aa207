from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burla.errors import BurlaError
from burla.head.spool import MEMORY_BYTES, Spool
from burla.protocol import MESSAGE_BYTES, Block

TOO_MUCH = MEMORY_BYTES + 1


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "made" / "here")


def files(spool: Spool) -> list[str]:
    return sorted(os.listdir(spool._folder)) if spool._folder.exists() else []


def test_things_within_the_budget_never_touch_the_disk(spool: Spool):
    for number in range(10):
        spool.append(number, MEMORY_BYTES // 10)
    assert [spool.get(number) for number in range(len(spool))] == list(range(10))
    assert not spool._folder.exists()


def test_things_beyond_the_budget_go_to_a_file_and_come_back_equal(spool: Spool):
    blocks = [Block(number, 1, False, os.urandom(1_000_000)) for number in range(40)]
    for block in blocks:
        spool.append(block, 1_000_000)
    assert [spool.get(number) for number in range(40)] == blocks
    in_file = (spool._folder / "spool").stat().st_size
    assert 8_000_000 <= in_file <= 9_000_000
    assert sum(item in blocks for item in spool._items) == 32, "and are not kept in memory as well"


def test_a_small_thing_after_a_large_one_keeps_its_place(spool: Spool):
    spool.append("large", TOO_MUCH)
    spool.append("small", 1)
    spool.append("large again", TOO_MUCH)
    assert [spool.get(number) for number in (2, 0, 1)] == ["large again", "large", "small"]


@settings(max_examples=50)
@given(things=st.lists(st.tuples(st.binary(), st.sampled_from([0, 1, MEMORY_BYTES // 3, TOO_MUCH]))))
def test_things_come_back_by_number_in_any_mix(tmp_path_factory: pytest.TempPathFactory, things: list):
    spool = Spool(tmp_path_factory.mktemp("spool"))
    for thing, size_bytes in things:
        spool.append(thing, size_bytes)
    assert [spool.get(number) for number in range(len(spool))] == [thing for thing, _ in things]
    spool.close()


def test_a_blob_comes_back_in_pieces_that_fit_a_message(spool: Spool):
    data = os.urandom(2 * MESSAGE_BYTES + 77)
    for offset in range(0, len(data), 3_000_000):
        spool.put_piece("b1", data[offset : offset + 3_000_000])
    back = b""
    while len(back) < len(data):
        piece = spool.get_piece("b1", len(back))
        assert 0 < len(piece) <= MESSAGE_BYTES
        back += piece
    assert back == data


def test_blobs_do_not_mix(spool: Spool):
    for data in (b"1", b"2"):
        spool.put_piece("a", data)
        spool.put_piece("b", data * 3)
    assert (spool.get_piece("a", 0), spool.get_piece("b", 0)) == (b"12", b"111222")


def test_an_unknown_blob_is_named_in_the_error(spool: Spool):
    with pytest.raises(BurlaError, match="nothere"):
        spool.get_piece("nothere", 0)


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/b", "", ".", "a\0b"])
def test_the_name_of_a_blob_cannot_lead_out_of_the_folder(spool: Spool, name: str):
    with pytest.raises(BurlaError, match="not the name of a blob"):
        spool.put_piece(name, b"x")
    assert not files(spool)


def test_files_are_for_the_owner_only(spool: Spool):
    before = os.umask(0)
    try:
        spool.append("large", TOO_MUCH)
        spool.put_piece("blob1", b"x")
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((spool._folder / name).stat().st_mode) for name in files(spool)}
    assert modes == {"blob1": 0o600, "spool": 0o600}
    assert stat.S_IMODE(spool._folder.stat().st_mode) == 0o700


def test_close_leaves_no_file_and_no_descriptor(spool: Spool):
    before = len(os.listdir("/dev/fd"))
    spool.append("large", TOO_MUCH)
    spool.put_piece("blob1", b"x")
    spool.close()
    spool.close()
    assert not spool._folder.exists()
    assert len(os.listdir("/dev/fd")) == before
