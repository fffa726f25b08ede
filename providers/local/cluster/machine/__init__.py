"""Processes, mounts, addresses and memory of this machine."""
