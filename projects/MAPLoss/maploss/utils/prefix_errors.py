# SPDX-License-Identifier: Apache-2.0
"""Messages of checks that know no config, with the key that the value came from."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def prefix_errors(key: str) -> Iterator[None]:
    """A TypeError or ValueError within begins with `key`, a config key or a group of them."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{key}: {error}") from error
