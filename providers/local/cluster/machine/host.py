"""This machine, as the cluster's one node."""

from __future__ import annotations

import os
from decimal import Decimal

NODE_NAME = "node1"


def host_resources() -> dict[str, Decimal]:
    """CPUs and bytes of memory of this machine, the cluster's one node."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": Decimal(os.cpu_count() or 1), "memory": Decimal(memory)}
