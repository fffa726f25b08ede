"""The package's description for Airflow. Imports nothing: Airflow loads it in every process."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Provider metadata: the ``mlflow`` connection type, the operators' links, ``@task.train``."""
    return {
        "package-name": "nighttrain",
        "name": "nighttrain",
        "description": "Train on Kubernetes, track in MLflow, gate on the registry, roll out to serving.",
        "versions": ["0.1.0"],
        "integrations": [
            {
                "integration-name": "MLflow",
                "external-doc-url": "https://mlflow.org/docs/latest/",
                "tags": ["software"],
            }
        ],
        "operators": [
            {
                "integration-name": "MLflow",
                "python-modules": [
                    "nighttrain.operators.training",
                    "nighttrain.operators.registry",
                    "nighttrain.operators.serving",
                ],
            }
        ],
        "task-decorators": [
            {"class-name": "nighttrain.operators.train_function.train_task", "name": "train"}
        ],
        "sensors": [
            {
                "integration-name": "MLflow",
                "python-modules": ["nighttrain.sensors.registry", "nighttrain.sensors.serving"],
            }
        ],
        "hooks": [{"integration-name": "MLflow", "python-modules": ["nighttrain.sensors.common.hooks"]}],
        "triggers": [{"integration-name": "MLflow", "python-modules": ["nighttrain.sensors.triggers"]}],
        "extra-links": [
            "nighttrain.operators.links.MLflowRunLink",
            "nighttrain.operators.links.ModelVersionLink",
            "nighttrain.operators.links.EvaluationPlotLink",
            "nighttrain.operators.links.RolloutPictureLink",
            "nighttrain.operators.links.WorkloadLink",
            "nighttrain.operators.links.EndpointLink",
        ],
        "connection-types": [
            {
                "connection-type": "mlflow",
                "hook-class-name": "nighttrain.sensors.common.hooks.MLflowHook",
                "hook-name": "MLflow",
                "conn-fields": _CONNECTION_FIELDS,
                "ui-field-behaviour": {
                    "hidden-fields": ["schema"],
                    "relabeling": {"host": "Tracking URI", "login": "User name"},
                    "placeholders": {"host": "https://mlflow.example.com"},
                },
            }
        ],
    }


_OPTIONAL_TEXT = {"type": ["string", "null"]}

_CONNECTION_FIELDS = {
    "token": {
        "label": "Bearer token (instead of user name and password)",
        "schema": {"type": ["string", "null"], "format": "password"},
    },
    "registry_uri": {"label": "Registry URI, where it is another server", "schema": _OPTIONAL_TEXT},
    "ca_certificate": {"label": "CA certificate (path of a PEM file)", "schema": _OPTIONAL_TEXT},
    "cluster_uri": {
        "label": "Tracking URI as pods see it, where it differs from the one above",
        "schema": _OPTIONAL_TEXT,
    },
    "mlflow_secret": {
        "label": "Kubernetes Secret with MLFLOW_TRACKING_* credentials for pods",
        "schema": _OPTIONAL_TEXT,
    },
    "ui_uri": {
        "label": "Address of the web page, where it differs from the tracking URI",
        "schema": _OPTIONAL_TEXT,
    },
}
