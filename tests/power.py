"""Disks under a process that dies: of a kill, which loses nothing that was written, or with the power, which does."""

from __future__ import annotations

import os
import random
from pathlib import Path

from obs_engine.checkpoint.disk import Disk

SECTOR_BYTES = 512
LOSSES = ("nothing", "everything", "some")


class Killed(BaseException):
    """The process ended here; nothing runs after it."""


class MortalDisk(Disk):
    """The files of a process that is killed: from then on no call does anything, but for giving descriptors back.

    Attributes:
        calls: how many there were of those that change something or make it durable; a death shows only there.
        is_dead: the process is.
    """

    def __init__(self, fuse: int = 0, *, is_torn: bool = False) -> None:
        """
        Args:
            fuse: the number of the call before which the process dies, from 1; 0 spares it.
            is_torn: if that call is a write, half of it is still done.
        """
        self.calls = 0
        self.is_dead = False
        self._fuse = fuse
        self._is_torn = is_torn
        self._descriptors: set[int] = set()

    def die(self) -> None:
        """The process ends now."""
        self.is_dead = True

    def end(self) -> int:
        """Closes what the process left open, as the system does; says how much that was."""
        left = len(self._descriptors)
        for fd in list(self._descriptors):
            self.close(fd)
        return left

    def _live(self) -> None:
        if self.is_dead:
            raise Killed

    def _dies(self) -> bool:
        self._live()
        self.calls += 1
        self.is_dead = self.calls == self._fuse
        return self.is_dead

    def _step(self) -> None:
        if self._dies():
            raise Killed

    def open(self, path: str, *, is_new: bool = False) -> int:
        (self._live if os.path.exists(path) else self._step)()
        fd = super().open(path, is_new=is_new)
        self._descriptors.add(fd)
        return fd

    def lock(self, fd: int) -> bool:
        self._live()
        return super().lock(fd)

    def is_at(self, fd: int, path: str) -> bool:
        self._live()
        return super().is_at(fd, path)

    def size(self, fd: int) -> int:
        self._live()
        return super().size(fd)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        self._live()
        return super().read(fd, length, offset)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        if self._dies():
            super().write(fd, data[: len(data) // 2] if self._is_torn else b"", offset)
            raise Killed
        super().write(fd, data, offset)

    def truncate(self, fd: int, length: int) -> None:
        self._step()
        super().truncate(fd, length)

    def sync(self, fd: int) -> None:
        self._step()

    def sync_directory(self, path: str) -> None:
        self._step()

    def link(self, path: str, other: str) -> None:
        self._step()
        super().link(path, other)

    def rename(self, path: str, other: str) -> None:
        self._step()
        super().rename(path, other)

    def unlink(self, path: str) -> None:
        self._step()
        super().unlink(path)

    def close(self, fd: int) -> None:
        self._descriptors.discard(fd)
        super().close(fd)


class PowerLossDisk(MortalDisk):
    """Files of one folder, of which only what was synced is sure to be there when the power is back.

    Beside the real files stand their versions since they were last synced, and so do the versions of the folder's
    names. Versions are whole: a sector that reaches the disk holds all that was written to it until then.
    """

    def __init__(self, folder: Path, fuse: int = 0, *, is_torn: bool = False) -> None:
        """
        Args:
            folder: what is in it now is durable.
        """
        super().__init__(fuse, is_torn=is_torn)
        self._folder = folder
        files = {path.stat().st_ino: [path.read_bytes()] for path in folder.iterdir()}
        self._names = [{path.name: files[path.stat().st_ino] for path in folder.iterdir()}]
        self._files: dict[int, list[bytes]] = {}

    def after_power_loss(self, survived: str, rng: random.Random) -> None:
        """Lays the folder out as the disk may show it.

        Args:
            survived: of what was not synced: "nothing", "everything", or "some": of the names' changes the first few,
                and of a file each sector, and the length, as they were at some time since the last sync.
        """
        pick = {"nothing": lambda count: 0, "everything": lambda count: count - 1, "some": rng.randrange}[survived]
        for path in self._folder.iterdir():
            path.unlink()
        placed: dict[int, Path] = {}
        for name, versions in self._names[pick(len(self._names))].items():
            path = self._folder / name
            if id(versions) in placed:
                path.hardlink_to(placed[id(versions)])
                continue
            size = len(versions[pick(len(versions))])
            sectors = [
                versions[pick(len(versions))][at : at + SECTOR_BYTES].ljust(SECTOR_BYTES, b"\0")
                for at in range(0, size, SECTOR_BYTES)
            ]
            path.write_bytes(b"".join(sectors)[:size])
            placed[id(versions)] = path

    def open(self, path: str, *, is_new: bool = False) -> int:
        fd = super().open(path, is_new=is_new)
        name = os.path.basename(path)
        if name not in self._names[-1]:
            self._names.append({**self._names[-1], name: [b""]})
        self._files[fd] = self._names[-1][name]
        return fd

    def write(self, fd: int, data: bytes, offset: int) -> None:
        try:
            super().write(fd, data, offset)
        finally:
            self._note(fd)

    def truncate(self, fd: int, length: int) -> None:
        super().truncate(fd, length)
        self._note(fd)

    def _note(self, fd: int) -> None:
        self._files[fd].append(os.pread(fd, os.fstat(fd).st_size, 0))

    def sync(self, fd: int) -> None:
        super().sync(fd)
        del self._files[fd][:-1]

    def sync_directory(self, path: str) -> None:
        super().sync_directory(path)
        del self._names[:-1]

    def link(self, path: str, other: str) -> None:
        super().link(path, other)
        names = self._names[-1]
        self._names.append({**names, os.path.basename(other): names[os.path.basename(path)]})

    def rename(self, path: str, other: str) -> None:
        super().rename(path, other)
        names = dict(self._names[-1])
        names[os.path.basename(other)] = names.pop(os.path.basename(path))
        self._names.append(names)

    def unlink(self, path: str) -> None:
        super().unlink(path)
        self._names.append({name: file for name, file in self._names[-1].items() if name != os.path.basename(path)})
