"""The command `llmengine-operator`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from functools import partial
from pathlib import Path

from kubernetes.config import ConfigException

from llmengine import __version__
from llmengine.store import (
    STORE_PREFIX,
    Credentials,
    IncompleteCredentialsError,
    Store,
    Timeouts,
)
from llmengine_operator import logs
from llmengine_operator.config import Config, InvalidConfigError
from llmengine_operator.process import Process
from llmengine_operator.reconciler import Reconciler

EXIT_MISCONFIGURED = 2
# A pass reads small objects: a store that is slower than this is one that does not answer.
STORE_TIMEOUTS = Timeouts(connect_seconds=2, read_seconds=5, attempts=2)

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """Runs until SIGTERM (status 0) or until something breaks (status 1, 2 or 3)."""
    parser = argparse.ArgumentParser(
        prog="llmengine-operator", description="Compiles and serves the LLMEngines of a cluster."
    )
    parser.add_argument("--config", type=Path, default=Path("/etc/llmengine/config.yaml"))
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING"))
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(arguments)
    logs.configure(options.log_level)
    try:
        config = Config.load(options.config)
        credentials = Credentials.from_environment(STORE_PREFIX, os.environ)
        store = Store(config.store.location, credentials, timeouts=STORE_TIMEOUTS)
        process = Process(config, partial(Reconciler, store=store))
    except (InvalidConfigError, IncompleteCredentialsError, ConfigException) as error:
        log.critical("%s", error)
        sys.exit(EXIT_MISCONFIGURED)
    sys.exit(process.run())


if __name__ == "__main__":
    main()
