# SPDX-License-Identifier: Apache-2.0
"""Speed and memory, measured by commands that append rows with the machine's description."""
