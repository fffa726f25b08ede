"""Dagster resources, assets, checks and sensors."""
