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
    """The handlers that one client put on the logger; taken off by `close`."""

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
        self._handlers: list[logging.Handler] = []
        self._logger = logging.getLogger("obs_engine")
        if config.disable:
            return
        layout = logging.Formatter(
            f"%(asctime)s|process:%(process)d|thread:%(thread)d|%(levelname)s|{name}|%(message)s|".replace("\n", " ")
        )
        with _lock:
            file = _shared_file(config)
            if not file.users:
                file.setFormatter(layout)
                file.setLevel(config.log_file_level)
            self._add(file)
            if config.print_log_to_console == 1:
                console = logging.StreamHandler()
                console.setFormatter(layout)
                console.setLevel(config.print_log_level)
                self._add(console)

    def close(self) -> None:
        """Ends the log; may be called twice."""
        with _lock:
            for handler in self._handlers:
                users = getattr(handler, "users", 1) - 1
                if isinstance(handler, _OwnFile):
                    handler.users = users
                if not users:
                    self._logger.removeHandler(handler)
                    handler.close()
            self._handlers.clear()

    def _add(self, handler: logging.Handler) -> None:
        if isinstance(handler, _OwnFile):
            handler.users += 1
        self._handlers.append(handler)
        self._logger.addHandler(handler)  # once, however often it is said
        if not self._logger.isEnabledFor(handler.level):
            self._logger.setLevel(handler.level)


class _OwnFile(RotatingFileHandler):
    """A rotating file, mode 0600, that several clients may write."""

    users = 0

    def _open(self) -> Any:
        os.close(os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
        return super()._open()


def _shared_file(config: Any) -> _OwnFile:
    """The handler of a file: the one that another client has, or a new one."""
    path = os.path.abspath(os.path.join(config.log_file_dir, config.log_file_name))
    for handler in logging.getLogger("obs_engine").handlers:
        if isinstance(handler, _OwnFile) and handler.baseFilename == path:
            return handler
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        return _OwnFile(
            path, maxBytes=config.log_file_size * _MIB, backupCount=config.log_file_number, encoding="utf-8"
        )
    except OSError as error:
        raise InvalidArgumentError(
            f"LogConf {path!r}: expected a log file that can be written, found {error.strerror}; choose another"
        ) from error
