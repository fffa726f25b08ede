"""The state of an attempt, and its outcome."""
