# SPDX-License-Identifier: Apache-2.0
"""What knows nothing of detectors: files in one step, pickles of others, seeds, warnings."""
