# SPDX-License-Identifier: Apache-2.0
"""Warnings about files that several parts of a run read, each for itself."""

import logging

_given: set[tuple[str, str]] = set()


def warn_once(logger: logging.Logger, message: str) -> None:
    """Logs a warning, unless this process has given it before."""
    if (logger.name, message) not in _given:
        _given.add((logger.name, message))
        logger.warning(message)
