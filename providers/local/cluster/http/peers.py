"""The user at the other end of a loopback connection, as far as the kernel says."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

_TABLE = Path("/proc/net/tcp")


def is_own_user(client: tuple[str, int], server: tuple[str, int]) -> bool:
    """True if the connection from ``client`` to ``server`` was opened by the user who runs this process.

    Only Linux says so, and only for IPv4; anywhere else the answer is False.
    """
    try:
        wanted = (_address(client), _address(server))
        with _TABLE.open(encoding="ascii") as table:
            for line in table:
                fields = line.split()
                if (fields[1], fields[2]) == wanted:
                    return int(fields[7]) == os.getuid()
    except (OSError, ValueError, IndexError):
        return False
    return False


def _address(address: tuple[str, int]) -> str:
    """``127.0.0.1`` and 80 as the kernel writes them: ``0100007F:0050``, in the machine's byte order."""
    (number,) = struct.unpack("=I", socket.inet_aton(address[0]))
    return f"{number:08X}:{address[1]:04X}"
