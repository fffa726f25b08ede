"""Rollouts: bring a version up beside the serving one, switch when ready, keep the old one for rollback."""
