# SPDX-License-Identifier: Apache-2.0
"""Golden files, synthetic scenes, awkward photos, look-alike models: code of tests and demo."""
