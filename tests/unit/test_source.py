"""The file: its cut into parts, its identity, its windows."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import re
import socket
import tempfile
from pathlib import Path

import pytest

from obs_engine.errors import (
    InvalidArgumentError,
    ObsEngineError,
    SourceChangedError,
    SourceError,
    SourceNotFoundError,
    SourceTruncatedError,
    SourceUnreadableError,
)
from obs_engine.limits import GIB, KIB, MIB, OBJECT_SIZE_MAX_BYTES
from obs_engine.source.filesystem import choose_reader, filesystem_of
from obs_engine.source.identity import identify, recheck
from obs_engine.source.page_cache import PageCache, memory_bytes
from obs_engine.source.plan import plan_parts
from obs_engine.source.window import MappedWindow, open_window

READERS = ["mmap", "pread"]


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
        window = MappedWindow(file.fileno(), 3, size - 3)
        for offset in range(0, len(window), step):
            assert sum(window[offset : offset + 16]) == 0
        mapped = re.search(rf"{path}\n(?:.*\n)*?Rss: +(\d+) kB", Path("/proc/self/smaps").read_text())
        assert mapped
        assert int(mapped.group(1)) < 8 * 1024
        assert window[0:5] == bytes(5)
        window.close()


@pytest.mark.parametrize("reader", READERS)
def test_a_file_cut_under_a_window_is_an_error_not_a_crash(tmp_path: Path, reader: str) -> None:
    """Bytes that are gone are met before they are touched, and the error says how long the file is."""
    path = tmp_path / "f"
    path.write_bytes(b"x" * (8 * MIB))
    with path.open("rb") as file:
        window = open_window(file.fileno(), 0, 8 * MIB, reader)
        assert window[0:MIB] == b"x" * MIB
        os.truncate(path, 3 * MIB)
        with pytest.raises(SourceTruncatedError, match=f"expected at least .* found {3 * MIB}") as raised:
            [window[offset : offset + MIB] for offset in range(MIB, 8 * MIB, MIB)]
        assert raised.value.found_bytes == 3 * MIB
        window.close()


def test_a_disk_that_fails_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of `read` is one of the source, with the offset and the system's word."""

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "f"
    path.write_bytes(b"x" * 100)
    with path.open("rb") as file:
        window = open_window(file.fileno(), 10, 50, "pread")
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(SourceError, match="from offset 30, found Input/output error"):
            window[20:40]


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


@pytest.mark.parametrize("reader", READERS)
def test_windows_show_exactly_their_bytes(tmp_path: Path, reader: str) -> None:
    """Any offset, any length, empty included; a window past the end is a cut file, not a crash."""
    data = bytes(range(256)) * 100
    path = tmp_path / "f"
    path.write_bytes(data)
    with path.open("rb") as file:
        for offset, length in [(0, 0), (0, 1), (1, 1), (4095, 2), (4097, 9000), (0, len(data)), (len(data), 0)]:
            window = open_window(file.fileno(), offset, length, reader)
            assert bytes(window[0:length]) == data[offset : offset + length]
            assert len(window) == length
            window.close()
            window.close()
        with pytest.raises(SourceTruncatedError, match="was cut") as raised:
            open_window(file.fileno(), len(data) - 1, 2, reader)
        assert (raised.value.expected_bytes, raised.value.found_bytes) == (len(data) + 1, len(data))


@pytest.mark.parametrize("reader", READERS)
def test_slices_in_any_order_are_the_files(tmp_path: Path, reader: str) -> None:
    """Seeded slices, forwards and back, of a file with a hole, on disk and in memory."""
    chance = random.Random(5)
    folders = [tmp_path, Path("/dev/shm")] if os.access("/dev/shm", os.W_OK) else [tmp_path]
    for folder in folders:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(chance.randbytes(MIB + 7))
            file.seek(3 * MIB)
            file.write(chance.randbytes(2 * MIB + 3))
            file.flush()
            file.seek(0)
            data = file.read()
            offset = chance.randrange(MIB)
            window = open_window(file.fileno(), offset, len(data) - offset, reader)
            for _ in range(200):
                start = chance.randrange(len(window))
                stop = min(len(window), start + chance.choice([1, 4096, 100_000, MIB]))
                assert window[start:stop] == data[offset + start : offset + stop]
            window.close()


# --- looking again ----------------------------------------------------------------------------------------------


def test_a_file_that_is_looked_at_again(tmp_path: Path) -> None:
    """The same passes, whatever its inode says; a shorter, another, and a missing one are told apart."""
    path = tmp_path / "f"
    path.write_bytes(b"abcdef")
    before = identify(str(path))
    path.chmod(0o600)
    assert recheck(str(path), before).is_same_content(before)
    os.truncate(path, 2)
    with pytest.raises(SourceTruncatedError, match="expected at least 6 bytes, found 2") as raised:
        recheck(str(path), before)
    assert (raised.value.expected_bytes, raised.value.found_bytes) == (6, 2)
    path.write_bytes(b"abcdefgh")
    with pytest.raises(SourceChangedError, match="found it changed meanwhile"):
        recheck(str(path), before)
    path.unlink()
    for _ in range(2):
        with pytest.raises(SourceChangedError, match="gone or replaced") as gone:
            recheck(str(path), before)
        assert isinstance(gone.value.__cause__, (SourceNotFoundError, InvalidArgumentError))
        path.mkdir(exist_ok=True)


# --- where it lies ----------------------------------------------------------------------------------------------

MOUNTS = r"""
21 26 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
26 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw
30 26 0:52 / /mnt/with\040a\040-\040dash rw shared:9 master:2 - nfs4 host:/export rw,vers=4.2
31 26 0:53 / /mnt/cloud rw - fuse.sshfs me@host: rw
32 26 0:54 /
a line of another kind
33 26 0:55 / /tmp rw shared:11 - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("device", "kind", "reader"),
    [((8, 2), "ext4", "mmap"), ((0, 52), "nfs4", "pread"), ((0, 53), "fuse.sshfs", "pread"), ((0, 54), None, "mmap"),
     ((0, 55), "tmpfs", "mmap"), ((9, 9), None, "mmap")],
)  # fmt: skip
def test_the_filesystem_chooses_the_reader(
    device: tuple[int, int], kind: str | None, reader: str, tmp_path: Path
) -> None:
    """What comes from another host, or from a process, is read; all else, and what is not told of, is mapped."""
    number = os.makedev(*device)
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert filesystem_of(number, MOUNTS.splitlines()) == kind
    assert choose_reader(number, str(mounts)) == reader
    assert choose_reader(number, str(tmp_path / "none")) == "mmap"


def resident_pages(path: Path) -> int:
    """Pages of a file that the page cache holds."""
    size = path.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        found = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        assert libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), found) == 0
        return sum(page & 1 for page in found)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no such advice on this system")
def test_what_is_done_with_leaves_the_page_cache(tmp_path: Path) -> None:
    """Of a large file everything, whatever the order of its parts; of a small one nothing."""
    path, size, part = tmp_path / "f", 8 * MIB + 100, 100_000
    path.write_bytes(bytes(size))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    pages = -(-size // mmap.PAGESIZE)
    for share in (0.25, None):
        PageCache(str(path), size, share).drop(0, size)
    assert resident_pages(path) == pages
    large = PageCache(str(path), size, 0.0)
    offsets = list(range(0, size, part))
    random.Random(2).shuffle(offsets)
    for offset in offsets:
        large.drop(offset, min(part, size - offset))
    large.close()
    left = resident_pages(path)
    if left == pages:
        pytest.skip("this filesystem drops nothing")
    assert left <= 1


def test_the_memory_is_known() -> None:
    """The machine's, or less in a container."""
    assert 32 * MIB < memory_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
