"""What MLflow loads: the entry point ``kubernetes`` of the group ``mlflow.deployments``.

The only module that knows mlflow. It runs inside MLflow's own command line, or a program that called
``mlflow.deployments.get_deploy_client``, and in no process of nighttrain's; it loads no model.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import mlflow
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2
from mlflow.utils.proto_json_utils import dump_input_data

from nighttrain.providers import errors
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.commands.environment import person, warn
from nighttrain.providers.deployment_target.deployments import Deployments
from nighttrain.providers.deployment_target.settings import describe_settings
from nighttrain.providers.deployment_target.standing import FLAVOR

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

T = TypeVar("T")

# The forms of a request to MLflow's scoring server.
_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")

# The first that fits counts.
_CODES: tuple[tuple[type[Exception], int], ...] = (
    (errors.ConfigurationError, databricks_pb2.INVALID_PARAMETER_VALUE),
    (errors.ObjectExistsError, databricks_pb2.RESOURCE_ALREADY_EXISTS),
    (errors.ObjectNotFoundError, databricks_pb2.RESOURCE_DOES_NOT_EXIST),
    (errors.ModelNotFoundError, databricks_pb2.RESOURCE_DOES_NOT_EXIST),
    (errors.ModelVersionNotFoundError, databricks_pb2.RESOURCE_DOES_NOT_EXIST),
    (errors.RolloutUnderWayError, databricks_pb2.RESOURCE_CONFLICT),
    (errors.WorkloadConflictError, databricks_pb2.RESOURCE_CONFLICT),
    (errors.ClusterForbiddenError, databricks_pb2.PERMISSION_DENIED),
    (errors.ClusterUnauthorizedError, databricks_pb2.PERMISSION_DENIED),
    (errors.TrackingUnauthorizedError, databricks_pb2.PERMISSION_DENIED),
    (errors.ClusterUnreachableError, databricks_pb2.TEMPORARILY_UNAVAILABLE),
    (errors.TrackingUnreachableError, databricks_pb2.TEMPORARILY_UNAVAILABLE),
)

_HELP = """
Endpoints on Kubernetes, the same as those of nighttrain's operators: a Service, and a
Deployment for each version. A version is verified (sha256), brought up beside the one
that serves, and gets the requests when it is ready, all at once or by a strategy in
steps; one that fails is undone. Progress is told on standard error.

Target
  kubernetes:/NAMESPACE                    the kubeconfig's current context (KUBECONFIG)
  kubernetes:/NAMESPACE?context=CONTEXT    another context
  kubernetes                               the context's namespace

Models
  models:/NAME/VERSION, models:/NAME@ALIAS, models:/NAME/STAGE: registered versions.
  MLFLOW_TRACKING_URI is a server's address; credentials come from MLflow's variables.

Settings, -C NAME=VALUE
{settings}

Verbs
  create   the first version; image is needed
  update   another version (-m), or another form of the one that serves (-C). Settings of
           pods that are not given stay as they were
  delete   Service, Deployments, route and rollout state, on KServe and Argo Rollouts what
           nighttrain made there; refused during a rollout in steps
  predict  through the API server (create on services/proxy), else the Service's address
  explain, run-local and --endpoint are not supported

Interrupted (Ctrl-C), a rollout is undone. Somebody else's look and word:
  nighttrain rollout status|promote|pause|resume|abort NAME -n NAMESPACE
"""


def target_help() -> str:
    """What ``mlflow deployments help -t kubernetes`` shows."""
    return _HELP.format(settings=describe_settings())


def run_local(
    name: str, model_uri: str, flavor: str | None = None, config: Mapping[str, Any] | None = None
) -> NoReturn:
    """Refused: MLflow serves a model on one machine by itself.

    :raises MlflowException: always
    """
    raise MlflowException(
        f"{name}: this target has no local form: run mlflow models serve -m {model_uri}, or try the whole "
        "on one machine with nighttrain's embedded cluster",
        error_code=databricks_pb2.NOT_IMPLEMENTED,
    )


class KubernetesDeploymentClient(BaseDeploymentClient):
    """Creates, updates and deletes endpoints on Kubernetes.

    Every method raises ``MlflowException`` with nighttrain's text where something is wrong.

    :param target_uri: ``kubernetes:/NAMESPACE``
    """

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)  # type: ignore[no-untyped-call]
        self._deployments = _said(
            lambda: Deployments(
                target_uri,
                mlflow.get_tracking_uri(),
                registry_uri=mlflow.get_registry_uri(),
                actor=f"{person()} (mlflow deployments)",
                tell=warn,
            )
        )

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Bring the first version up on a new endpoint; returns when it answers."""
        _check(flavor, endpoint)
        return _run(self._deployments.create(name, model_uri, config))

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Take an endpoint to another version or form; returns when that is done or undone."""
        _check(flavor, endpoint)
        return _run(self._deployments.update(name, model_uri, config))

    def delete_deployment(
        self, name: str, config: Mapping[str, Any] | None = None, endpoint: str | None = None
    ) -> None:
        """Take an endpoint down completely; one that is not there is no error."""
        _check(None, endpoint)
        if config:
            _refuse("-C", config, "deleting takes no settings")
        _run(self._deployments.delete(name))

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """Every endpoint of the namespace, also those of operators."""
        _check(None, endpoint)
        return _run(self._deployments.list())

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """One endpoint: version, replicas, addresses, rollout, who made it."""
        _check(None, endpoint)
        return _run(self._deployments.get(name))

    def predict(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> PredictionsResponse:
        """Send rows or a request to the endpoint, and return its answer."""
        _check(None, endpoint)
        if not deployment_name:
            _refuse("name", deployment_name, "name the endpoint")
        return PredictionsResponse(_run(self._deployments.predict(deployment_name, _question(inputs))))

    def explain(
        self, deployment_name: str | None = None, df: Any = None, endpoint: str | None = None
    ) -> NoReturn:
        """Refused: the scoring server has no explanations."""
        raise MlflowException(
            f"{deployment_name or endpoint}: this target gives no explanations: its scoring server has none",
            error_code=databricks_pb2.NOT_IMPLEMENTED,
        )


def _question(inputs: Any) -> dict[str, Any]:
    """A request in one of the scoring server's forms.

    The command line reads every file as a table: one that holds a request in the form ``dataframe_split`` or
    ``dataframe_records`` already is found as the only column of that name.
    """
    if isinstance(inputs, dict):
        return inputs if inputs.keys() & set(_FORMS) else {"inputs": inputs}
    columns = [str(column) for column in getattr(inputs, "columns", ())]
    if columns == ["dataframe_split"]:
        return {"dataframe_split": inputs["dataframe_split"].to_dict()}
    if columns == ["dataframe_records"]:
        return {"dataframe_records": inputs["dataframe_records"].tolist()}
    found: dict[str, Any] = json.loads(dump_input_data(inputs))
    return found


def _check(flavor: str | None, endpoint: str | None) -> None:
    if flavor not in (None, FLAVOR):
        _refuse("flavor", flavor, f"leave it out: pods load {FLAVOR}, whatever library the model is of")
    if endpoint is not None:
        _refuse("endpoint", endpoint, "here a deployment is an endpoint: give its name with --name")


def _refuse(field: str, value: object, fix: str) -> NoReturn:
    error = errors.ConfigurationError(field, value, fix)
    raise MlflowException(str(error), error_code=databricks_pb2.INVALID_PARAMETER_VALUE)


def _run(work: Coroutine[Any, Any, T]) -> T:
    return _said(lambda: run_sync(work))


def _said(do: Callable[[], T]) -> T:
    """What it returns. :raises MlflowException: what nighttrain says went wrong"""
    try:
        return do()
    except errors.NighttrainError as error:
        code = next((code for kind, code in _CODES if isinstance(error, kind)), databricks_pb2.INTERNAL_ERROR)
        raise MlflowException(str(error), error_code=code) from error
