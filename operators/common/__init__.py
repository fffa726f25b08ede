"""Shared by the operators: the running task, clients, outages of the cluster, notes for the next try."""
