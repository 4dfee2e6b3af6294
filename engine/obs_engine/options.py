"""`EngineOptions`: all tuning that the standard API has no argument for, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from obs_engine.errors import InvalidArgumentError
from obs_engine.limits import KIB, MIB

Durability = Literal["power", "crash"]
OnSourceChange = Literal["restart", "refuse"]
Verify = Literal["none", "length", "etag", "crc64", "readback"]
Reader = Literal["mmap", "pread", "auto"]

_WORDS = {"durability": Durability, "on_source_change": OnSourceChange, "verify": Verify, "reader": Reader}


@dataclass(frozen=True)
class EngineOptions:
    """Tuning of one client's engine.

    Attributes:
        processes: workers, 1-256; None takes the cores that this process may use, at most 8. An upload never
            uses more workers than its `taskNum`.
        upload_buffer_bytes: libcurl's buffer for each connection, 16 KiB to 2 MiB; None takes 1 MiB on plain
            connections and 512 KiB on TLS, and less from 64 parts in flight on (see DESIGN.md).
        verify: what must be proven before success is reported, each rung of the ladder more (see SEMANTICS.md): "none":
            that the service says so; "length": and the object's length; "etag": each part's ETag is the MD5 of the
            file's bytes, and the object's the MD5 of those; "crc64": the service checks the CRC-64 of each part and
            of the object, as with `isAttachCrc64`; "readback": as "etag", and the object is read back and compared.
        reader: how workers read the file: "mmap" maps it, "pread" copies it into a buffer; "auto" maps it unless its
            filesystem makes that unwise (network, FUSE).
        page_cache_share: a file larger than this share of the memory, 0-1, leaves the page cache as it is stored;
            None never takes anything out of it.
        durability: "power": the journal's promises hold through a power loss; "crash": through a kill only.
        sync_interval_s: with "power", at most this long lie between a part's record and its sync, 0.01-60.
        sync_parts: and at most so many parts, 1-10000.
        on_source_change: a file that changed since its upload began: "restart" aborts the old upload and begins anew,
            as the official SDK does; "refuse" raises SourceChangedError and changes nothing.
        adopt: continue an upload of which no record is left here, from what the service has of it (needs
            `enableCheckpoint`): True looks for the one open upload of the key, an upload id names it. Where there is a
            record with an upload in it, that one is continued.
        negotiate: ask each bucket, before its first upload and every quarter of an hour, whether it understands the
            signature `obs` (on virtual hosts, with the client's `is_signature_negotiation`); False goes by `signature`
            alone.
        check_bucket: send HEAD bucket before Initiate, as the official SDK does. Off by default: Initiate itself
            finds a missing bucket, and `PutObject` is then the only permission needed.
        max_connections: of all uploads of the client together, 1-100000, idle ones among them; None for as many as the
            limit on descriptors (RLIMIT_NOFILE) of each worker allows, 256 a worker at most. Parts beyond wait.
        max_bandwidth_bytes_per_s: of all uploads of the client together, 1024 at least; None for no cap.
            `ObsClient.set_max_bandwidth` changes it while they run.
        deadline_s: for one call of `uploadFile` altogether, above 0; None for no such limit.
        keys_wait_s: so long an upload pauses, 0-86400, when access keys that have worked are refused and their provider
            has no others yet; it is asked again every two seconds. Keys that were given as such are not waited for.
        connect_timeout_s: for a connection to stand, TLS included, 0.1-3600; None takes the client's `timeout`.
    """

    processes: int | None = None
    upload_buffer_bytes: int | None = None
    verify: Verify = "etag"
    reader: Reader = "auto"
    page_cache_share: float | None = 0.25
    durability: Durability = "power"
    sync_interval_s: float = 1.0
    sync_parts: int = 1000
    on_source_change: OnSourceChange = "restart"
    adopt: bool | str = False
    negotiate: bool = True
    check_bucket: bool = False
    max_connections: int | None = None
    max_bandwidth_bytes_per_s: float | None = None
    deadline_s: float | None = None
    keys_wait_s: float = 300.0
    connect_timeout_s: float | None = None

    def __post_init__(self) -> None:
        _within(self, "processes", int, 1, 256, optional=True)
        _within(self, "upload_buffer_bytes", int, 16 * KIB, 2 * MIB, optional=True)
        _within(self, "sync_interval_s", (int, float), 0.01, 60)
        _within(self, "max_connections", int, 1, 100_000, optional=True)
        _within(self, "max_bandwidth_bytes_per_s", (int, float), 1024, 1e15, optional=True)
        _within(self, "deadline_s", (int, float), 0.001, 1e9, optional=True)
        _within(self, "keys_wait_s", (int, float), 0, 86_400)
        _within(self, "connect_timeout_s", (int, float), 0.1, 3600, optional=True)
        _within(self, "page_cache_share", (int, float), 0, 1, optional=True)
        for name, kind in _WORDS.items():
            if getattr(self, name) not in get_args(kind):
                expected = ", ".join(map(repr, get_args(kind)))
                raise InvalidArgumentError(f"EngineOptions.{name}", f"one of {expected}", getattr(self, name))
        _within(self, "sync_parts", int, 1, 10_000)
        if not isinstance(self.adopt, (bool, str)) or self.adopt == "":
            raise InvalidArgumentError("EngineOptions.adopt", "True, False or an upload id", self.adopt)
        for name in ("negotiate", "check_bucket"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidArgumentError(f"EngineOptions.{name}", "True or False", getattr(self, name))


def _within(
    options: EngineOptions, name: str, kind: Any, lowest: float, highest: float, *, optional: bool = False
) -> None:
    assert name in {f.name for f in fields(options)}
    value = getattr(options, name)
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, kind) or not lowest <= value <= highest:
        raise InvalidArgumentError(f"EngineOptions.{name}", f"a number from {lowest} to {highest}", value)
