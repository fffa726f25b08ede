"""Talking to one API server."""
