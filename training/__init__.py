# SPDX-License-Identifier: Apache-2.0
"""How the shipped tiny model is made: scenes without photos, losses, trainer, export.

Not installed. ``training/README.md`` has the commands.
"""
