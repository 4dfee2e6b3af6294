"""`initLog`: the SDK's log file, on the logger "obs_engine". Nothing here happens unless the caller asks for it.

Runs in the caller's process alone: what workers and the coordinator have to say arrives there as lines.
"""

from __future__ import annotations

import logging
import os
import threading
from logging.handlers import RotatingFileHandler
from typing import Any

from obs_engine.errors import InvalidArgumentError

_MIB = 1 << 20
_lock = threading.Lock()


class LogFile:
    """One client's wish for a log file; clients that name the same file share it. `close` takes the wish back."""

    def __init__(self, config: Any, name: str) -> None:
        """
        Args:
            config: a `LogConf` of ours or of the SDK's.
            name: stands in each line.

        Raises:
            InvalidArgumentError: it is none, or the file cannot be written.
        """
        if not hasattr(config, "disable") or (not config.disable and not hasattr(config, "log_file_level")):
            raise InvalidArgumentError("log_config", "a LogConf", config, "log config is not correct")
        self._shared: _Shared | None = None
        if not config.disable:
            path = os.path.abspath(os.path.join(config.log_file_dir, config.log_file_name))
            with _lock:
                shared = _open_files.get(path) or _Shared(path, config, name)
                shared.users += 1
                self._shared = shared

    def close(self) -> None:
        """Ends the log, unless another client writes it too; may be called twice."""
        with _lock:
            shared, self._shared = self._shared, None
            if shared is not None:
                shared.users -= 1
                if not shared.users:
                    shared.close()


class _Shared:
    """The handlers of one file, on the logger from the first client's wish to the last one's end."""

    def __init__(self, path: str, config: Any, name: str) -> None:
        self.users = 0
        self._path = path
        self._logger = logging.getLogger("obs_engine")
        name = name.replace("%", "%%").replace("\n", " ")
        layout = logging.Formatter(
            f"%(asctime)s|process:%(process)d|thread:%(thread)d|%(levelname)s|{name}|%(message)s|"
        )
        self._handlers: list[logging.Handler] = [_opened(path, config)]
        levels = [config.log_file_level]
        if config.print_log_to_console == 1:
            self._handlers.append(logging.StreamHandler())
            levels.append(config.print_log_level)
        for handler, level in zip(self._handlers, levels, strict=True):
            handler.setFormatter(layout)
            handler.setLevel(level)
            self._logger.addHandler(handler)
        if not _open_files:
            _levels_before.append(self._logger.level)
        if not self._logger.isEnabledFor(min(levels)):
            self._logger.setLevel(min(levels))
        _open_files[path] = self

    def close(self) -> None:
        for handler in self._handlers:
            self._logger.removeHandler(handler)
            handler.close()
        del _open_files[self._path]
        if not _open_files:
            self._logger.setLevel(_levels_before.pop())


_open_files: dict[str, _Shared] = {}
_levels_before: list[int] = []
"""The level that the host had given to the logger before the first file; it comes back with the end of the last."""


class _OwnFile(RotatingFileHandler):
    """A rotating file, mode 0600."""

    def _open(self) -> Any:
        os.close(os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
        return super()._open()


def _opened(path: str, config: Any) -> _OwnFile:
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        return _OwnFile(
            path, maxBytes=config.log_file_size * _MIB, backupCount=config.log_file_number, encoding="utf-8"
        )
    except OSError as error:
        raise InvalidArgumentError(
            f"LogConf {path!r}: expected a log file that can be written, found {error.strerror}; choose another"
        ) from error
