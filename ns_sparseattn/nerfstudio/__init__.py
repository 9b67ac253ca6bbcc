# SPDX-License-Identifier: Apache-2.0
"""Everything that imports nerfstudio: its command, its dataparser, and the cache behind it."""
