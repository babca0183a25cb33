# SPDX-License-Identifier: MIT
"""The replay buffers that are measured, in the order of the tables; a file for each library."""

from __future__ import annotations

from peers.cpprb import Cpprb
from peers.numpy_ring import NumpyRing, NumpySlices
from peers.ours import Fastreplay, FastreplayOut, FastreplayPositional
from peers.peer import Peer
from peers.rlox import Rlox
from peers.sb3 import StableBaselines3
from peers.torchrl import TorchRL

__all__ = ["PEERS", "Fastreplay", "NumpyRing", "Peer", "StableBaselines3", "TorchRL"]

PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        *(NumpyRing, NumpySlices, StableBaselines3, Cpprb, Rlox, TorchRL),
        *(Fastreplay, FastreplayPositional, FastreplayOut),
    )
}
