"""The one node: scheduling, pods, containers, probes, logs, volumes."""
