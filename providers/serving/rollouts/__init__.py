"""Rollouts in steps: what is decided, where it is kept, and who carries it out."""
