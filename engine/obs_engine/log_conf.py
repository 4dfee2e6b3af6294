"""What `initLog` is told: the SDK's ini file of a log."""

from __future__ import annotations

import logging
import os

from obs_engine.errors import InvalidArgumentError

_LEVELS = {name: getattr(logging, name) for name in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")}


class LogConf:
    """What the SDK's ini file says of a log.

    Attributes:
        disable: True without a file: nothing is logged.
        log_file_dir, log_file_name: where it is written.
        log_file_size: MB of a file before the next is begun; 0 for one that grows.
        log_file_number: older files that are kept.
        log_file_level, print_log_level: `logging`'s numbers.
        print_log_to_console: 1 to write to standard error as well.
    """

    def __init__(self, config_file: str | os.PathLike[str] | None = None, sec: str = "LOGCONF") -> None:
        """
        Args:
            config_file: an ini file with the keys LogFileDir, LogFileName, LogFileSize, LogFileNumber, LogFileLevel,
                PrintLogToConsole and PrintLogLevel, all of them optional.
            sec: its section.

        Raises:
            InvalidArgumentError: no such file or section, or a value that is none.
        """
        self.disable = config_file is None
        self.log_file_dir, self.log_file_name = "./", "log.log"
        self.log_file_size = self.log_file_number = self.print_log_to_console = 0
        self.log_file_level = self.print_log_level = logging.DEBUG
        if config_file is not None:
            self._read(os.path.abspath(os.fspath(config_file)), sec)

    def _read(self, path: str, section: str) -> None:
        from configparser import ConfigParser, Error

        if not os.path.exists(path):
            raise InvalidArgumentError("LogConf", "an ini file", path, f"{path} is not exist: correct the path")
        parser = ConfigParser(interpolation=None)
        try:
            parser.read(path, "utf-8")
        except (Error, UnicodeDecodeError, OSError) as error:
            raise InvalidArgumentError(f"LogConf {path!r}: expected an ini file, found {error}; correct it") from None
        if section not in parser:
            raise InvalidArgumentError("LogConf", f"a section {section!r} in {path}", parser.sections())
        found = parser[section]
        self.log_file_dir = found.get("logfiledir", self.log_file_dir)
        self.log_file_name = found.get("logfilename", self.log_file_name)
        try:
            self.log_file_size = max(0, found.getint("logfilesize", 0))
            self.log_file_number = max(0, found.getint("logfilenumber", 0))
            self.print_log_to_console = found.getint("printlogtoconsole", 0)
        except ValueError as error:
            raise InvalidArgumentError(f"LogConf {path!r}: expected whole numbers, found {error}; correct it") from None
        self.log_file_level = _LEVELS.get(found.get("logfilelevel", "DEBUG").upper(), logging.DEBUG)
        self.print_log_level = _LEVELS.get(found.get("printloglevel", "DEBUG").upper(), logging.DEBUG)
