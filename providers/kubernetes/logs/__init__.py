"""The lines of training pods, while they run."""
