"""What a rollout on KServe remembers from its first look: the two predictors, and the mode."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.values.objects import mapping, text
from nighttrain.providers.serving.backends.manifests import version_labels
from nighttrain.providers.serving.spec import DIGEST_ANNOTATION, MODEL_ANNOTATION, VERSION_LABEL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.traffic import Target
    from nighttrain.providers.serving.spec import ServingSpec

# A variable of each version's own. KServe merges the stable predictor into the canary's, and an empty list
# does not replace one: with this there is none.
VERSION_VARIABLE = "NIGHTTRAIN_MODEL_VERSION"

# Belongs to the rollout or to the size of the whole, not to a version.
_NOT_OF_A_VERSION = frozenset({"name", "minReplicas", "maxReplicas", "canaryTrafficPercent"})

# The name of a Service of KServe's is a host name: 63 characters.
_MAX_SERVICE = 63


class Mode(StrEnum):
    """How KServe deploys an InferenceService: as Deployments, or as Knative revisions."""

    STANDARD = "Standard"
    KNATIVE = "Knative"

    @classmethod
    def of(cls, name: str) -> Mode:
        """The mode by its present or former name.

        :raises ConfigurationError: there is no such mode, or it splits nothing
        """
        former = {"RawDeployment": cls.STANDARD, "Serverless": cls.KNATIVE}
        try:
            return former.get(name) or cls(name)
        except ValueError as error:
            raise ConfigurationError("mode", name, f"choose one of {', '.join(cls)}") from error


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Plain values that a :class:`Target` carries in its names.

    :param stable_name: the stable predictor's ``name``; empty where it has none
    :param candidate_name: the candidate's
    :param stable: the stable version's part of ``spec.predictor``; empty where nothing serves yet
    :param candidate: the candidate's
    :param stable_replicas: the stable version's ``minReplicas``
    :param replicas: the candidate's, once it serves everything
    :param max_replicas: ``maxReplicas`` beside it; ``None`` where the endpoint has none
    """

    mode: Mode
    stable_name: str
    candidate_name: str
    stable: Json
    candidate: Json
    stable_replicas: int
    replicas: int
    max_replicas: int | None

    def to_names(self) -> dict[str, str]:
        """The plan as :attr:`Target.names`."""
        return {
            "mode": str(self.mode),
            "stable_name": self.stable_name,
            "candidate_name": self.candidate_name,
            "stable": json.dumps(self.stable, sort_keys=True),
            "candidate": json.dumps(self.candidate, sort_keys=True),
            "stable_replicas": str(self.stable_replicas),
            "replicas": str(self.replicas),
            "max_replicas": "" if self.max_replicas is None else str(self.max_replicas),
        }

    @classmethod
    def of(cls, target: Target) -> Plan:
        """The plan that a target carries."""
        names = target.names
        return cls(
            mode=Mode(names["mode"]),
            stable_name=names["stable_name"],
            candidate_name=names["candidate_name"],
            stable=json.loads(names["stable"]),
            candidate=json.loads(names["candidate"]),
            stable_replicas=int(names["stable_replicas"]),
            replicas=int(names["replicas"]),
            max_replicas=int(names["max_replicas"]) if names["max_replicas"] else None,
        )


def service_name(endpoint: str, predictor: str) -> str:
    """The Service and Deployment that KServe makes for a predictor; in Knative mode its Knative Service."""
    return f"{endpoint}-{predictor}-predictor" if predictor else f"{endpoint}-predictor"


def check_names(endpoint: str, namespace: str, predictor: str) -> None:
    """Refuse an endpoint whose Services or addresses would have names that are too long.

    :raises ConfigurationError: names the fix
    """
    names = (service_name(endpoint, predictor), f"{endpoint}-predictor-{namespace}")
    if any(len(name) > _MAX_SERVICE for name in names):
        longest = max(names, key=len)
        raise ConfigurationError(
            "endpoint", endpoint, f"KServe makes the name {longest} of it, over {_MAX_SERVICE}: shorten it"
        )


def version_of(predictor: Json) -> str:
    """The version that a predictor is of; empty where it does not say."""
    return text(mapping(predictor.get("labels")).get(VERSION_LABEL))


def form_of(predictor: Json) -> Json:
    """A version's part of a predictor as the cluster holds it, without what KServe's webhook filled in."""
    return {
        key: {name: held for name, held in value.items() if held not in ("", {})} if key == "model" else value
        for key, value in predictor.items()
        if key not in _NOT_OF_A_VERSION and value not in ("", {}, None)
    }


def build_form(
    spec: ServingSpec,
    uri: str,
    *,
    model_format: str,
    protocol_version: str | None,
    runtime: str | None,
) -> Json:
    """A version's part of a predictor: what it serves, how, and whose it is.

    Labels and annotations of a predictor reach its pods, and stay the same while it is promoted: nothing
    restarts. (Those of the InferenceService reach the pods of every version, so nothing is stamped there.)
    """
    env = [{"name": VERSION_VARIABLE, "value": spec.version}, *WorkloadSpec(env_vars=spec.env_vars).env()]
    work = spec.workload()
    model: dict[str, Any] = {
        "modelFormat": {"name": model_format},
        "protocolVersion": protocol_version,
        "runtime": runtime,
        "storageUri": uri,
        "env": env,
        "envFrom": list(spec.env_from),
        "resources": work.container_resources,
    }
    form: dict[str, Any] = {
        "labels": {**spec.labels, **version_labels(spec.endpoint, spec.version)},
        "annotations": {
            **spec.annotations,
            MODEL_ANNOTATION: spec.model_name,
            DIGEST_ANNOTATION: spec.artifact_digest,
        },
        "terminationGracePeriodSeconds": spec.termination_grace_period,
        "serviceAccountName": spec.service_account_name,
        "nodeSelector": dict(spec.node_selector),
        "tolerations": list(spec.tolerations),
        "affinity": spec.affinity,
        "imagePullSecrets": list(spec.image_pull_secrets),
        "model": {name: held for name, held in model.items() if held},
    }
    return _plain({name: held for name, held in form.items() if held not in (None, "", {}, [])})


def _plain(form: Mapping[str, Any]) -> Json:
    """The form as JSON: people may give the Kubernetes client's models."""
    from nighttrain.providers.kubernetes.job.api_models import plain

    kinds = {
        "tolerations": "list[V1Toleration]",
        "affinity": "V1Affinity",
        "imagePullSecrets": "list[V1LocalObjectReference]",
    }
    model = dict(form["model"])
    for name, kind in (("envFrom", "list[V1EnvFromSource]"), ("resources", "V1ResourceRequirements")):
        if name in model:
            model[name] = plain(model[name], kind, name)
    done = {name: plain(held, kinds[name], name) if name in kinds else held for name, held in form.items()}
    return {**done, "model": model}
