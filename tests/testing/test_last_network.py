# SPDX-License-Identifier: Apache-2.0
"""One network is kept, and none beside a new one."""

from __future__ import annotations

import weakref

from torch import nn

from ns_sparseattn.testing.last_network import keep_last


def test_one_network_is_kept_and_let_go_before_the_next() -> None:
    alive: list[weakref.ref[nn.Module]] = []
    others: list[int] = []

    @keep_last
    def first(size: int) -> nn.Linear:
        others.append(sum(reference() is not None for reference in alive))
        network = nn.Linear(size, size)
        alive.append(weakref.ref(network))
        return network

    @keep_last
    def second(size: int) -> nn.Linear:
        others.append(sum(reference() is not None for reference in alive))
        network = nn.Linear(size, 1)
        alive.append(weakref.ref(network))
        return network

    assert first(3) is first(3)
    assert first(4).in_features == 4
    assert second(4).out_features == 1
    assert first(4).out_features == 4
    assert others == [0, 0, 0, 0]
