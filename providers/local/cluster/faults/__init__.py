"""Faults that tests script into the cluster."""
