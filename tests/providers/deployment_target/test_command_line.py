"""MLflow's own command line against a real MLflow, and pods with its real scoring server."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from nighttrain.providers.kubernetes.api.resources import CONFIGMAPS, DEPLOYMENTS, SERVICES
from nighttrain.providers.serving.spec import MANAGED_BY, MANAGED_BY_LABEL

from .conftest import ENV

if TYPE_CHECKING:
    from helpers.mlflow_server import MadeModel, MLflowServer
    from nighttrain.providers.kubernetes.api.client import ClusterClient

    from .conftest import Commands

pytestmark = [pytest.mark.slow, pytest.mark.mlflow, pytest.mark.timeout(600)]

TABLE = [{"dep_delay": 1.0}, {"dep_delay": 2.5}]
STEPS = "steps: [{step: weight, percent: 50, hold_seconds: 1}]\nwatch_seconds: 1\n"


async def made(client: ClusterClient) -> set[tuple[str, str]]:
    """Every object of nighttrain's in the namespace."""
    selector = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
    return {
        (resource.kind, item["metadata"]["name"])
        for resource in (SERVICES, DEPLOYMENTS, CONFIGMAPS)
        for item in (await client.list(resource, "default", label_selector=selector))["items"]
    }


def champion(server: MLflowServer, model: str) -> str:
    found = server.call("GET", "registered-models/alias", name=model, alias="champion")
    return str(found["model_version"]["version"])


async def test_an_endpoint_is_made_taken_on_asked_and_taken_down(
    commands: Commands, client: ClusterClient, three_versions: MadeModel, mlflow_server: MLflowServer
) -> None:
    model = three_versions.name
    done = commands.run(
        *(
            "create",
            "--name",
            "delay",
            "-m",
            f"models:/{model}/1",
            "-C",
            "image=scoring",
            "-C",
            f"env_vars={ENV}",
        )
    )
    assert "python_function deployment delay is created" in done.stdout
    assert "nighttrain: delay: version 1: " in done.stderr
    assert f"nighttrain: delay serves version 1 of {model}" in done.stderr
    again = commands.run("create", "--name", "delay", "-m", f"models:/{model}/2", "-C", "image=x", fails=True)
    assert "MlflowException: there is an endpoint delay in namespace default already" in again.stderr

    table = commands.write("table.json", TABLE)
    assert json.loads(commands.run("predict", "--name", "delay", "-I", table).stdout) == {
        "predictions": [11.0, 12.5]
    }

    (commands.folder / "steps.yaml").write_text(STEPS)
    done = commands.run(
        *("update", "--name", "delay", "-m", f"models:/{model}/2"),
        *("-C", "strategy=steps.yaml", "-C", "alias=champion"),
    )
    assert "50 percent of the requests go to the candidate" in done.stderr
    assert "Deployment delay is updated (with flavor python_function)" in done.stdout
    assert champion(mlflow_server, model) == "2"
    question = commands.write(
        "question.json", {"dataframe_split": {"columns": ["dep_delay"], "data": [[1.0], [2.5]]}}
    )
    commands.run("predict", "--name", "delay", "-I", question, "-O", "answer.json")
    assert json.loads((commands.folder / "answer.json").read_text()) == {"predictions": [21.0, 22.5]}

    shown = dict(
        line.split(": ", 1) for line in commands.run("get", "--name", "delay").stdout.splitlines() if line
    )
    assert shown["model_uri"] == f"models:/{model}/2"
    assert (shown["previous_version"], shown["replicas"], shown["image"]) == ("1", "1", "scoring")
    assert shown["rollout"].startswith("version 2 is promoted (begun by ")
    assert shown["created_by"].endswith("(mlflow deployments)")
    assert f"'name': 'delay', 'model_name': '{model}', 'version': '2'" in commands.run("list").stdout

    done = commands.run("update", "--name", "delay", "-m", f"models:/{model}/3", fails=True)
    assert "could not convert string to float: 'many'" in done.stderr
    assert "version 2 still serves" in done.stderr

    commands.run("delete", "--name", "delay")
    assert await made(client) == set()
    assert champion(mlflow_server, model) == "2"
    tags = [tag["key"] for tag in mlflow_server.versions(model)[1]["tags"]]
    assert "nighttrain.serving" not in tags
    last = mlflow_server.history(model)[-1]
    assert last["nighttrain.history.reason"] == "endpoint default/delay was taken down"


# What MLflow's command line makes of mistakes: each is an argument list of its own, all in one process.
CHILD = """
import json, sys
from click.testing import CliRunner
from mlflow.deployments.cli import commands
for arguments in json.load(sys.stdin):
    error = CliRunner().invoke(commands, arguments).exception
    print(json.dumps([type(error).__name__, getattr(error, "error_code", None), str(error)]))
"""

SHORT = {
    "CREATE": "create HERE --name refused -m models:/MODEL",
    "IMAGE": "-C image=x",
    "HERE": "-t kubernetes:/default",
}
BAD, ABSENT, NEVER = "INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "NOT_IMPLEMENTED"
MISTAKES = [
    ("CREATE/1 -C imge=x", BAD, "-C imge = 'x': there is no such setting; did you mean image?"),
    ("CREATE/1", BAD, "-C image: name a container image"),
    ("CREATE/1 IMAGE -C replicas=two", BAD, "-C replicas = 'two': write a whole number"),
    ("CREATE/1 IMAGE -C replicas=0", BAD, "replicas = 0: use a whole number from 1"),
    ("CREATE/1 IMAGE -C strategy=absent.yaml", BAD, "the file cannot be read"),
    ("""CREATE/1 IMAGE -C 'strategy={"stps": []}'""", BAD, "strategy.stps"),
    ("""CREATE/1 IMAGE -C 'env_vars=["A"]'""", BAD, "write a mapping as JSON"),
    ("""CREATE/1 IMAGE -C 'env_vars={"A": '""", BAD, "it is neither JSON nor YAML"),
    ("""CREATE/1 IMAGE -C 'env_vars={"DB_PASSWORD": "hunter2hunter2"}'""", BAD, "in a Kubernetes Secret"),
    ("CREATE/1 IMAGE -C backend=swarm", BAD, "backend = 'swarm': choose one of"),
    ("CREATE/1 IMAGE -C mlflow_uri=http://u:p@mlflow:5000", BAD, "leave the user out of it"),
    ("CREATE/1 IMAGE -f sklearn", BAD, "flavor = 'sklearn': leave it out"),
    ("CREATE/1 IMAGE --endpoint e", BAD, "here a deployment is an endpoint"),
    ("CREATE/9 IMAGE", ABSENT, "has no version 9"),
    ("CREATE@nobody IMAGE", ABSENT, "has no alias 'nobody'"),
    ("CREATE/Production IMAGE", ABSENT, "is in stage Production"),
    ("create HERE --name refused -m models:/absent/1 IMAGE", ABSENT, "has no version 1 of 'absent'"),
    ("create HERE --name refused -m runs:/abc/model IMAGE", BAD, "register the model first"),
    ("create HERE --name refused -m models:/m-123 IMAGE", BAD, "write models:/NAME/VERSION"),
    ("create HERE --name 'No Name' -m models:/MODEL/1 IMAGE", BAD, "endpoint = 'No Name'"),
    ("update HERE --name absent -m models:/MODEL/1", ABSENT, "there is no endpoint absent"),
    ("update HERE --name absent", BAD, "nothing is to be changed"),
    ("get HERE --name absent", ABSENT, "there is no endpoint absent"),
    ("predict HERE --name absent -I TABLE", ABSENT, "there is no endpoint absent"),
    ("predict HERE --endpoint absent -I TABLE", BAD, "give its name with --name"),
    ("explain HERE --name absent -I TABLE", NEVER, "gives no explanations"),
    ("delete HERE --name absent -C force=true", BAD, "deleting takes no settings"),
    ("run-local HERE --name x -m models:/MODEL/1", NEVER, "mlflow models serve"),
    ("list -t kubernetes://default", BAD, "write kubernetes:/NAMESPACE"),
    ("list -t kubernetes:/default?contxt=a", BAD, "write kubernetes:/NAMESPACE"),
    ("list -t kubernetes:/default?context=absent", BAD, "absent"),
]


async def test_each_mistake_is_an_mlflow_exception_in_our_words_and_makes_nothing(
    commands: Commands, client: ClusterClient, three_versions: MadeModel
) -> None:
    table = str(commands.folder / commands.write("table.json", TABLE))
    short = SHORT | {"MODEL": three_versions.name, "TABLE": table}
    before = await made(client)
    told = mistakes_of(commands, [line for line, _, _ in MISTAKES], short)
    for (line, code, words), (kind, told_code, text) in zip(MISTAKES, told, strict=True):
        assert (kind, told_code) == ("MlflowException", code), (line, text)
        assert words in text, line
        assert "hunter2" not in text
    assert await made(client) == before


def test_a_store_without_a_server_and_a_cluster_that_is_away_are_told(
    commands: Commands, three_versions: MadeModel
) -> None:
    short = SHORT | {"MODEL": three_versions.name}
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{commands.folder}/mlflow.db"}
    ((_, code, text),) = mistakes_of(commands, ["CREATE/1 IMAGE"], short, environment)
    assert code == BAD
    assert "MLFLOW_TRACKING_URI" in text
    absent = f"{commands.folder}/absent"
    ((_, code, text),) = mistakes_of(commands, ["list HERE"], short, {"KUBECONFIG": absent})
    assert code == BAD
    assert absent in text


def mistakes_of(
    commands: Commands,
    lines: list[str],
    short: dict[str, str],
    environment: dict[str, str] | None = None,
) -> list[Any]:
    for name, text in short.items():
        lines = [line.replace(name, text) for line in lines]
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps([shlex.split(line) for line in lines]),
        capture_output=True,
        text=True,
        timeout=200,
        env=commands.environment() | (environment or {}),
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
