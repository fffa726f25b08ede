"""A version's page in MLflow: what a person reads there, and the tag that says where it serves."""

from nighttrain.providers.registry.version_page.description import VersionFacts, compose, describe
from nighttrain.providers.registry.version_page.refresh import (
    record_serving,
    refresh_description,
    refreshed_if_possible,
)
from nighttrain.providers.registry.version_page.serving import endpoints_of, mark_serving, mark_withdrawn

__all__ = [
    "VersionFacts",
    "compose",
    "describe",
    "endpoints_of",
    "mark_serving",
    "mark_withdrawn",
    "record_serving",
    "refresh_description",
    "refreshed_if_possible",
]
