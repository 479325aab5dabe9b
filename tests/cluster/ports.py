"""Ports to listen on."""

from __future__ import annotations

import random
import socket

# Below the range from which the kernel takes the ports of outgoing connections.
_PORTS = range(20000, 32000)


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on at the moment; somebody else may take it before it is used."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
        return port
