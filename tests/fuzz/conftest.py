# SPDX-License-Identifier: Apache-2.0
"""How many cases the property tests draw: few and always the same, or many and new ones."""

from hypothesis import HealthCheck, settings

# No files are kept: what fails is printed with the line that draws it again.
_COMMON = {
    "deadline": None,
    "database": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow],
}
settings.register_profile("test", max_examples=15, derandomize=True, **_COMMON)
settings.register_profile("nightly", max_examples=400, **_COMMON)
settings.load_profile("test")
