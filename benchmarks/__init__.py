# SPDX-License-Identifier: Apache-2.0
"""
Speed: what the loss costs. `make bench` runs all, `python -m benchmarks.NAME` one of them.
"""
