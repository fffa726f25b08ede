"""What the commands read from the environment, and what they say on the way."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.tracking.config import TrackingConfig

if TYPE_CHECKING:
    import argparse

# What MLflow's own client reads, by the field of a TrackingConfig.
MLFLOW_VARIABLES = {
    "token": "MLFLOW_TRACKING_TOKEN",
    "username": "MLFLOW_TRACKING_USERNAME",
    "password": "MLFLOW_TRACKING_PASSWORD",
    "workspace": "MLFLOW_WORKSPACE",
    "auth": "MLFLOW_TRACKING_AUTH",
    "ca_certificate": "MLFLOW_TRACKING_SERVER_CERT_PATH",
}
INSECURE_VARIABLE = "MLFLOW_TRACKING_INSECURE_TLS"
URI_VARIABLE = "MLFLOW_TRACKING_URI"


def add_mlflow_uri(parser: argparse.ArgumentParser) -> None:
    """Let a command be told where MLflow is."""
    parser.add_argument(
        "--mlflow-uri",
        default=os.environ.get(URI_VARIABLE),
        help=f"MLflow's address; {URI_VARIABLE}, if left out. Credentials, workspace and certificate come "
        "from the variables of MLflow's own client: "
        f"{', '.join(MLFLOW_VARIABLES.values())}, {INSECURE_VARIABLE}",
    )


def required_tracking(uri: str | None) -> TrackingConfig:
    """The way to MLflow. :raises ConfigurationError: no address was given"""
    if not uri:
        raise ConfigurationError("--mlflow-uri", None, f"give MLflow's address, here or in {URI_VARIABLE}")
    return tracking_from_environment(uri)


def tracking_from_environment(uri: str) -> TrackingConfig:
    """The way to MLflow at ``uri``, as MLflow's own client would read it from the environment.

    :raises ConfigurationError: a variable that cannot be used, by its name
    """
    given: dict[str, Any] = {field: os.environ.get(name) or None for field, name in MLFLOW_VARIABLES.items()}
    insecure = os.environ.get(INSECURE_VARIABLE, "").lower() in {"true", "1"}
    try:
        return TrackingConfig(uri=uri, verify_ssl=not insecure, **given)
    except ConfigurationError as error:
        name = MLFLOW_VARIABLES.get(error.field, "--mlflow-uri")
        raise ConfigurationError(name, error.value, error.fix) from error


def warn(message: str) -> None:
    """Say something on standard error, so that the output stays what it is."""
    print(f"nighttrain: {message}", file=sys.stderr)


def person() -> str:
    """Who runs the command, and where, for histories."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in many containers
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
