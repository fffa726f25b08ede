"""One watch for all that wait: what the cluster holds, kept current."""
