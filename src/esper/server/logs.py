"""Logs of the service: one JSON object a line, on stderr."""

import json
import logging
from typing import Any, Final, final

from typing_extensions import override


@final
class AsJson(logging.Formatter):
    """Time, level, logger and message; the facts of a request stand beside them."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        facts: Any = message
        if record.name == "esper.server.gate" and record.levelno == logging.INFO:
            facts = json.loads(message)
        said = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **(facts if isinstance(facts, dict) else {"message": message}),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said)


LOGS: Final[dict[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "esper.server.logs.AsJson"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "loggers": {
        name: {"handlers": ["stderr"], "level": "INFO", "propagate": False}
        for name in ("esper", "uvicorn")
    },
}
"""For ``logging.config.dictConfig``."""
