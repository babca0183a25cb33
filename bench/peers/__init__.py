# SPDX-License-Identifier: MIT
"""The replay buffers that are measured, in the order of the tables; a file for each library."""

from __future__ import annotations

from peers.cpprb import Cpprb, CpprbPrioritized
from peers.flashbax import Flashbax
from peers.numpy_ring import NumpyRing, NumpySlices
from peers.ours import Fastreplay, FastreplayOut, FastreplayPositional, FastreplayPrioritized, FastreplayThreads
from peers.peer import Peer, PrioritizedPeer
from peers.rlox import Rlox, RloxPrioritized
from peers.sb3 import StableBaselines3
from peers.tianshou import Tianshou
from peers.torchrl import TorchRL, TorchRLPrioritized

__all__ = ["PEERS", "PRIORITIZED", "Fastreplay", "NumpyRing", "Peer", "PrioritizedPeer", "StableBaselines3", "TorchRL"]

PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        *(NumpyRing, NumpySlices, StableBaselines3, Cpprb, Rlox, Tianshou, TorchRL, Flashbax),
        *(Fastreplay, FastreplayPositional, FastreplayOut, FastreplayThreads),
    )
}

PRIORITIZED: dict[str, type[PrioritizedPeer]] = {
    peer.name: peer for peer in (CpprbPrioritized, RloxPrioritized, TorchRLPrioritized, FastreplayPrioritized)
}
