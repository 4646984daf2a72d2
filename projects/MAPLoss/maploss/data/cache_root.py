# SPDX-License-Identifier: Apache-2.0
"""Where the project keeps what it makes once: the rendered data set, converted proposals."""

import os


def cache_root() -> str:
    """Folder of everything cached: $MAPLOSS_CACHE, or else ~/.cache/maploss."""
    folder = os.environ.get("MAPLOSS_CACHE") or os.path.join("~", ".cache", "maploss")
    return os.path.abspath(os.path.expanduser(folder))
