"""What is refused before anything runs, and what importing and defining costs. No servers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from nighttrain.assets.flights import NIGHTS, airline_delay_definitions
from nighttrain.assets.gates import model_gate_check
from nighttrain.assets.interruptible import Say, run_interruptibly
from nighttrain.assets.registry import registered_model_sensor
from nighttrain.assets.resources import KubernetesResource, MLflowResource
from nighttrain.assets.training import training_asset
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec

if TYPE_CHECKING:
    from collections.abc import Callable

SPEC = WorkloadSpec(image="localhost/small:1")
MODULES = (
    *("flights", "gates", "interruptible", "registry", "resources", "selection", "training"),
    "workload",
)


def training() -> dg.AssetsDefinition:
    return training_asset(name="model", model_name="model", spec=SPEC)


def gate(**options: Any) -> dg.AssetChecksDefinition:
    given: dict[str, Any] = {"model_name": "model", "spec": SPEC, "rules": ["mae <= 4"]}
    return model_gate_check(asset=training(), **(given | options))


def sensor(**options: Any) -> dg.SensorDefinition:
    given: dict[str, Any] = {"name": "follow", "model_name": "model", "asset_key": "model"}
    return registered_model_sensor(**(given | options))


@pytest.mark.parametrize(
    ("define", "message"),
    [
        (sensor, "stage, alias, versions, tag = .*name exactly one of them"),
        (
            lambda: sensor(stage="Production", alias="champion"),
            "stage, alias, versions, tag = .*name exactly one",
        ),
        (lambda: sensor(stage="Prod"), "stage = 'Prod'.*Staging, Production, Archived"),
        (lambda: sensor(stage="None"), "stage = 'None': can be followed: Staging"),
        (lambda: sensor(alias="v7"), "alias = 'v7'.*reserves"),
        (lambda: sensor(stage="Production", asset_key=None), "name a job to run, an asset to observe"),
        (lambda: sensor(stage="Production", model_name="a/b"), "model = 'a/b'"),
        (lambda: gate(rules=[]), "a gate without a rule would accept anything"),
        (lambda: gate(rules=["mae is small"]), "rule = 'mae is small'.*write it like"),
        (lambda: gate(champion_alias="latest"), "alias = 'latest'"),
        (lambda: gate(no_champion="perhaps"), "no_champion = 'perhaps': one of accept"),
        (lambda: gate(model_name=""), "model = ''"),
        (lambda: training_asset(name="m", model_name="a:b", spec=SPEC), "model = 'a:b'"),
        (lambda: MLflowResource(tracking_uri="sqlite:///x.db").client(), "uri = 'sqlite:///x.db'"),
    ],
)
def test_bad_input_is_refused_when_it_is_defined(define: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        define()


def test_the_flights_are_definitions_that_hold_together() -> None:
    defs = airline_delay_definitions(
        kubernetes=KubernetesResource(), mlflow=MLflowResource(tracking_uri="http://127.0.0.1:1")
    )
    dg.Definitions.validate_loadable(defs)
    assert NIGHTS.get_first_partition_key() == "2013-01-29"
    assert NIGHTS.get_last_partition_key() == "2013-12-17"
    (check,) = defs.get_asset_checks_def(dg.AssetCheckKey(dg.AssetKey("airline_delay"), "gate")).check_specs
    assert check.blocking


def test_credentials_in_an_address_reach_neither_pods_nor_pages() -> None:
    resource = MLflowResource(tracking_uri="https://me:hidden@mlflow.example.com/")
    shown = [resource.uri_for_pods(), resource.run_url("1", "r"), resource.version_url("a model", "2")]
    assert shown[0] == "https://mlflow.example.com"
    assert shown[2] == "https://mlflow.example.com/#/models/a%20model/versions/2"
    assert not any("hidden" in text for text in shown)
    assert resource.tracking_config().password == "hidden"


def test_the_secret_for_pods_by_its_name_and_by_the_one_it_had_before() -> None:
    wanted = [{"secretRef": {"name": "credentials"}}]
    resource = MLflowResource(tracking_uri="http://mlflow:5000", mlflow_secret="credentials")
    assert resource.pods().sources() == wanted
    former = MLflowResource(tracking_uri="http://mlflow:5000", credentials_secret="credentials")
    with pytest.warns(DeprecationWarning, match="credentials_secret is called mlflow_secret"):
        assert former.pods().sources() == wanted


def test_importing_brings_neither_airflow_nor_mlflow_nor_a_client() -> None:
    imports = "; ".join(f"import nighttrain.assets.{name}" for name in MODULES)
    code = f"""
import sys
{imports}
roots = {{name.partition(".")[0] for name in sys.modules}}
print(sorted(roots & {{"airflow", "mlflow", "kubernetes", "kubernetes_asyncio", "pandas"}}))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_an_interrupt_cancels_the_work_before_it_goes_on() -> None:
    seen = []

    async def work(say: Say) -> str:
        say("begin")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            say("removed")
            raise
        return "never"

    def say(line: str) -> None:
        seen.append(line)
        if line == "begin":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(work, say)
    assert seen == ["begin", "removed"]


def test_work_ends_with_its_result_or_its_error_whatever_the_log_does() -> None:
    def broken(line: str) -> None:
        raise OSError(line)

    async def work(say: Say) -> str:
        say("a line")
        return "done"

    async def fails(say: Say) -> str:
        raise ValueError("no")

    assert run_interruptibly(work, broken) == "done"
    with pytest.raises(ValueError, match="no"):
        run_interruptibly(fails, broken)
