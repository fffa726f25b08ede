"""The control loops: what follows from what was written."""
