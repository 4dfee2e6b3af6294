"""The file: its cut into parts, its identity, its windows."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from obs_engine.errors import (
    InvalidArgumentError,
    ObsEngineError,
    SourceChangedError,
    SourceNotFoundError,
    SourceUnreadableError,
)
from obs_engine.limits import GIB, KIB, MIB, OBJECT_SIZE_MAX_BYTES
from obs_engine.source.identity import identify
from obs_engine.source.plan import plan_parts
from obs_engine.source.window import Window


@pytest.mark.parametrize(
    ("size", "asked", "part_size", "count", "last"),
    [
        (0, 9 * MIB, 9 * MIB, 1, 0),
        (1, 9 * MIB, 9 * MIB, 1, 1),
        (9437185, 9 * MIB, 9 * MIB, 2, 1),
        (94371840000, 9 * MIB, 9 * MIB, 10000, 9 * MIB),
        (94371840001, 9 * MIB, 9437185, 10000, 9427186),
        (GIB, 100 * KIB, 107375, 10000, 99199),
        (48 * 1024 * GIB, 9 * MIB, 5277655814, 10000, None),
        (5 * MIB, 1, 100 * KIB, 52, None),
        (20 * GIB, 1 << 60, 5 * GIB, 4, 5 * GIB),
    ],
)
def test_parts_are_clamped_and_grown_as_the_sdk_does(
    size: int, asked: int, part_size: int, count: int, last: int | None
) -> None:
    """100 KB to 5 GB; above 10,000 parts the size becomes ceil(size / 10000)."""
    plan = plan_parts(size, asked)
    assert (plan.part_size_bytes, plan.part_count) == (part_size, count)
    if last is not None:
        assert plan.part(plan.part_count)[1] == last


def test_a_file_beyond_the_service_is_refused() -> None:
    """48.8 TiB is the largest object; one byte more is an error before anything starts."""
    assert plan_parts(OBJECT_SIZE_MAX_BYTES, 1).part_count == 10000
    with pytest.raises(InvalidArgumentError, match="split the file"):
        plan_parts(OBJECT_SIZE_MAX_BYTES + 1, 1)


def test_identity_follows_links_and_sees_changes(tmp_path: Path) -> None:
    """Size and time make the content; a link is its file."""
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    first = identify(str(path))
    (tmp_path / "link").symlink_to(path)
    assert identify(str(tmp_path / "link")) == first
    os.utime(path, ns=(0, first.mtime_ns + 1))
    assert not identify(str(path)).is_same_content(first)


def test_a_window_keeps_only_the_pages_in_use(tmp_path: Path) -> None:
    """Read front to back, a large window costs the process little; going back shows the same bytes."""
    size, step = 64 * MIB, MIB
    path = tmp_path / "f"
    with path.open("wb") as file:
        file.truncate(size)
    with path.open("rb") as file:
        window = Window(file.fileno(), 3, size - 3)
        for offset in range(0, len(window), step):
            assert sum(window[offset : offset + 16]) == 0
        mapped = re.search(rf"{path}\n(?:.*\n)*?Rss: +(\d+) kB", Path("/proc/self/smaps").read_text())
        assert mapped
        assert int(mapped.group(1)) < 8 * 1024
        assert window[0:5] == bytes(5)
        window.close()


def test_a_file_cut_under_a_window_is_an_error_not_a_crash(tmp_path: Path) -> None:
    """Pages that are gone are met before they are touched."""
    path = tmp_path / "f"
    path.write_bytes(b"x" * (8 * MIB))
    with path.open("rb") as file:
        window = Window(file.fileno(), 0, 8 * MIB)
        assert window[0:MIB] == b"x" * MIB
        os.truncate(path, 3 * MIB)
        with pytest.raises(SourceChangedError, match="from offset 2097152"):
            [window[offset : offset + MIB] for offset in range(MIB, 8 * MIB, MIB)]
        window.close()


def test_what_is_no_file_is_refused_by_its_kind(tmp_path: Path) -> None:
    """A missing file, a directory, a FIFO and a socket each get their own words, at once."""
    with pytest.raises(SourceNotFoundError, match="found nothing"):
        identify(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        identify(str(tmp_path / "none"))
    with pytest.raises(InvalidArgumentError, match="a directory"):
        identify(str(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidArgumentError, match="a FIFO"):
        identify(str(tmp_path / "fifo"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(ObsEngineError):
            identify(str(tmp_path / "s"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    """No permission is said as such."""
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    path.chmod(0)
    with pytest.raises(SourceUnreadableError):
        identify(str(path))


def test_windows_show_exactly_their_bytes(tmp_path: Path) -> None:
    """Any offset, any length, empty included; a window past the end is a changed source, not a crash."""
    data = bytes(range(256)) * 100
    path = tmp_path / "f"
    path.write_bytes(data)
    with path.open("rb") as file:
        for offset, length in [(0, 0), (0, 1), (1, 1), (4095, 2), (4097, 9000), (0, len(data)), (len(data), 0)]:
            window = Window(file.fileno(), offset, length)
            assert bytes(window[0:length]) == data[offset : offset + length]
            assert len(window) == length
            window.close()
            window.close()
        with pytest.raises(SourceChangedError, match="was cut"):
            Window(file.fileno(), len(data) - 1, 2)
