"""Logs are one JSON object a line on stderr, and say which engine they are about."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import TextIO

_context: ContextVar[Mapping[str, str]] = ContextVar("log_context", default=MappingProxyType({}))

log = logging.getLogger(__name__)


@contextmanager
def about(**fields: str) -> Iterator[None]:
    """What is logged inside, by this thread, carries these fields, e.g. engine="team-a/chat"."""
    token = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(token)


class JsonFormatter(logging.Formatter):
    """time, level, logger, message, the fields of about(), and error for an exception."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_context.get(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(level: str = "INFO", stream: TextIO = sys.stderr) -> None:
    """Everything that this process logs, and what ends a thread, goes through the formatter."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for noisy in ("asyncio", "botocore", "kopf", "kubernetes", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    sys.excepthook = _process_ends
    threading.excepthook = _thread_ends


def _process_ends(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    log.critical("the process ends: %s", error, exc_info=(kind, error, trace))


def _thread_ends(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread else "a thread"
    log.critical("%s ends: %s", name, args.exc_value, exc_info=args.exc_value)
