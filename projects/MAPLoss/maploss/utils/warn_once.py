# SPDX-License-Identifier: Apache-2.0
"""Warnings about files that several parts of a run read, each for itself."""

import logging

_given: set[tuple[str, str]] = set()


def warn_once(logger: logging.Logger, message: str, key: str = "") -> None:
    """
    Logs a warning, unless this process has given it before.

    Args:
        logger: that says it.
        message: what it says.
        key: other messages of the same key are the same warning.
    """
    if (logger.name, key or message) not in _given:
        _given.add((logger.name, key or message))
        logger.warning(message)
