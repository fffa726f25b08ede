"""Shared by operators and sensors: connections, the hook, failures, templates."""
