# SPDX-License-Identifier: Apache-2.0
"""Golden files, synthetic scenes and awkward photos: code that tests and the demo share."""
