# SPDX-License-Identifier: Apache-2.0
"""
What made a number of docs/results.md and is no speed: `python -m experiments.NAME` from the root of
the repository.
"""
