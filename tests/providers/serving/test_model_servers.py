"""The model servers: their manifests, where a version's files get to, and which one is chosen."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from helpers.launched_server import FAKE_IMAGE
from helpers.pod_security import restricted
from nighttrain.providers.errors import ConfigurationError, RolloutFailedError
from nighttrain.providers.kubernetes.api.resources import DEPLOYMENTS
from nighttrain.providers.kubernetes.job.api_models import plain
from nighttrain.providers.local.cluster.machine.mounts import MountNamespaces
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.backends.manifests import build_deployment, build_service
from nighttrain.providers.serving.model_servers.model_server import Metrics, ModelServer, Series
from nighttrain.providers.serving.model_servers.servers import (
    KNOWN,
    MLFLOW,
    MLSERVER,
    OWN,
    TENSORFLOW_SERVING,
    TORCHSERVE,
    TRITON,
    VLLM,
    choose,
    named,
)
from nighttrain.providers.serving.rollout import Rollout
from nighttrain.providers.serving.scoring_server import EXIT_DIGEST_MISMATCH
from nighttrain.providers.serving.spec import ServingSpec

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient

Json = dict[str, Any]
Make = Callable[..., ServingSpec]
TEMPLATES = [server for server in KNOWN if server is not MLFLOW]


def spec_of(make: Make, server: ModelServer, **given: Any) -> ServingSpec:
    spec = make(server=server, **({} if server.downloads else {"download_image": "model-server"}) | given)
    spec.validate()
    return spec


def pod_of(spec: ServingSpec) -> Json:
    return dict(build_deployment(spec)["spec"]["template"]["spec"])


@pytest.fixture
def cluster(image: str) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster({"model-server": image}) as cluster:
        yield cluster


def server_name(server: ModelServer) -> str:
    return server.name


# As manifests.


@pytest.mark.parametrize("server", KNOWN, ids=server_name)
def test_every_servers_deployment_is_one_by_the_apis_models_and_the_restricted_level(
    serving_spec: Make, server: ModelServer
) -> None:
    made = build_deployment(spec_of(serving_spec, server, pod_security="restricted", port=8123))
    assert plain(made, "V1Deployment", "deployment") == made
    assert plain(build_service(made), "V1Service", "service")
    assert restricted(made["spec"]["template"]["spec"]) == []


@pytest.mark.parametrize("server", KNOWN, ids=server_name)
async def test_an_api_server_takes_every_servers_deployment(
    serving_spec: Make, client: ClusterClient, server: ModelServer
) -> None:
    # The embedded cluster runs no hooks and refuses them: nothing drains here.
    made = build_deployment(spec_of(serving_spec, server, drain_seconds=0.0))
    assert (await client.create(DEPLOYMENTS, "default", made))["metadata"]["uid"]


@pytest.mark.parametrize("server", KNOWN, ids=server_name)
def test_a_server_knows_model_version_and_port_and_no_placeholder_is_left(
    serving_spec: Make, server: ModelServer
) -> None:
    spec = spec_of(serving_spec, server, version="37", port=8123)
    pod = pod_of(spec)
    (main,) = pod["containers"]
    assert main["ports"][0] == {"name": "http", "containerPort": 8123, "protocol": "TCP"}
    assert main["readinessProbe"]["httpGet"]["port"] == "http"
    fetched = [container["args"] for container in pod.get("initContainers", [])]
    own = json.dumps([main.get("args"), main.get("env"), fetched, main["readinessProbe"]])
    assert not re.search(r"\{(model|version|port)\}", own)
    assert ("8123" in own) is (server is not OWN)
    assert not re.search(r"\{\w+\}", server.filled(model="m", version="1", port=1).request_path)


@pytest.mark.parametrize("server", KNOWN, ids=server_name)
def test_a_server_that_does_not_drain_is_told_to_stop_when_nobody_sends_any_more(
    serving_spec: Make, server: ModelServer
) -> None:
    (main,) = pod_of(spec_of(serving_spec, server, drain_seconds=2.5))["containers"]
    hook = {"preStop": {"sleep": {"seconds": 3}}}
    assert main.get("lifecycle") == (None if server is MLFLOW else hook)
    (main,) = pod_of(spec_of(serving_spec, server, drain_seconds=0.0))["containers"]
    assert "lifecycle" not in main


@pytest.mark.parametrize("server", TEMPLATES, ids=server_name)
def test_what_was_verified_is_where_the_server_looks_and_cannot_be_changed_there(
    serving_spec: Make, server: ModelServer
) -> None:
    pod = pod_of(spec_of(serving_spec, server, version="37"))
    (fetch,), (main,) = pod["initContainers"], pod["containers"]
    (volume,) = pod["volumes"]
    assert volume == {"name": "nighttrain-version", "emptyDir": {}}
    assert {mount["name"] for mount in (*fetch["volumeMounts"], *main["volumeMounts"])} == {volume["name"]}
    assert all(mount["readOnly"] for mount in main["volumeMounts"])
    places = {mount["mountPath"]: mount.get("subPath") for mount in main["volumeMounts"]}
    wanted: dict[str, dict[str, str]] = {
        "triton": {"/models/airline-delay/37": "model"},
        "tensorflow-serving": {"/models/airline-delay/37": "model/tf2model"},
    }
    assert places == {"/nighttrain": None} | wanted.get(server.name, {})


def test_the_mlflow_credentials_reach_the_container_that_downloads(serving_spec: Make) -> None:
    theirs, mlflow = ({"secretRef": {"name": name}} for name in ("theirs", "mlflow"))
    given: Json = {"env_from": [theirs], "mlflow_env_from": [mlflow], "mlflow_env": {"MLFLOW_WORKSPACE": "w"}}
    given["env_vars"] = {"MLFLOW_S3_ENDPOINT_URL": "http://s3", "MLSERVER_DEBUG": "true"}
    pod = pod_of(spec_of(serving_spec, MLSERVER, **given))
    (fetch,), (main,) = pod["initContainers"], pod["containers"]
    assert (fetch["envFrom"], main["envFrom"]) == ([theirs, mlflow], [theirs])
    names = [[variable["name"] for variable in container["env"]] for container in (fetch, main)]
    assert {"MLFLOW_TRACKING_URI", "MLFLOW_WORKSPACE", "MLFLOW_S3_ENDPOINT_URL"} <= set(names[0])
    assert not {"MLFLOW_TRACKING_URI", "MLFLOW_WORKSPACE"} & set(names[1])
    assert {"MLSERVER_MODEL_URI", "MLSERVER_DEBUG"} <= set(names[1])
    assert "MLSERVER_MODEL_URI" not in names[0]
    (only,) = pod_of(spec_of(serving_spec, MLFLOW, **given))["containers"]
    assert only["envFrom"] == [theirs, mlflow]


def test_a_users_variable_wins_over_the_servers(serving_spec: Make) -> None:
    spec = spec_of(serving_spec, MLSERVER, env_vars={"MLSERVER_PARALLEL_WORKERS": "2"})
    given = [item for item in pod_of(spec)["containers"][0]["env"] if "PARALLEL" in item["name"]]
    assert given == [{"name": "MLSERVER_PARALLEL_WORKERS", "value": "2"}]


def test_the_init_container_asks_for_what_a_quota_counts_and_for_no_gpu(serving_spec: Make) -> None:
    resources = {"limits": {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "1"}, "requests": {"cpu": "1"}}
    (fetch,) = pod_of(spec_of(serving_spec, VLLM, container_resources=resources))["initContainers"]
    assert fetch["resources"] == {"limits": {"cpu": "2", "memory": "4Gi"}, "requests": {"cpu": "1"}}


@pytest.mark.parametrize("server", KNOWN, ids=server_name)
def test_prometheus_is_told_where_the_counts_are(serving_spec: Make, server: ModelServer) -> None:
    spec = spec_of(serving_spec, server, pod_annotations={"prometheus.io/scrape": "false", "team": "flights"})
    template = build_deployment(spec)["spec"]["template"]
    ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
    told = {key: value for key, value in template["metadata"]["annotations"].items() if "prometheus" in key}
    assert told.pop("prometheus.io/scrape") == "false"  # the user's word
    assert template["metadata"]["annotations"]["team"] == "flights"
    if server.metrics is None:
        assert (told, ports.keys()) == ({}, {"http"})
    else:
        port = ports.get("metrics", ports["http"])
        assert told == {"prometheus.io/path": server.metrics.path, "prometheus.io/port": str(port)}


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool here: apt-get install prometheus")
def test_prometheus_can_read_every_selector(tmp_path: Path) -> None:
    pod = 'pod="a"'

    def expressions(metrics: Metrics) -> Iterator[str]:
        for series in (*metrics.requests, *metrics.errors):
            yield f"sum(rate({series.select(pod)}[1m]))"
        suffix = "_bucket" if metrics.latency.histogram else ""
        yield f"sum(rate({metrics.latency.select(pod, suffix=suffix)}[1m]))"

    found = [each for server in KNOWN if server.metrics for each in expressions(server.metrics)]
    rules = [{"record": f"of:{number}", "expr": each} for number, each in enumerate(found)]
    file = tmp_path / "rules.json"
    file.write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}))
    checked = subprocess.run(
        ["promtool", "check", "rules", file], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert Series(name="a").select() == "a{}"


# Bad input.


@pytest.mark.parametrize(
    ("server", "given", "said"),
    [
        (TRITON, {"download_image": None}, "triton does not download by itself"),
        (TRITON, {"model_name": "airline delay"}, "makes folders and addresses of it"),
        (TRITON, {"workers": 2}, "own arguments"),
        (TRITON, {"port": 8002}, "has its metrics there"),
        ("triton", {}, "model_servers.servers"),
        (replace(OWN, env={"API_KEY": "AKIAHUNTER2HUNTER2XX"}), {}, "Secret"),
        (replace(OWN, files={"server.ini": "password = hunter2"}), {}, "Secret"),
        (replace(OWN, args=("--api-key=hunter2-own",)), {}, "Secret"),
    ],
)
def test_a_mistake_names_its_field_and_tells_no_secret(
    serving_spec: Make, server: Any, given: Json, said: str
) -> None:
    fields = {"server": server, "download_image": "model-server", "known_secrets": ("hunter2-own",)} | given
    with pytest.raises(ConfigurationError) as caught:
        serving_spec(**fields).validate()
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value).lower()


def test_a_reference_to_a_secret_is_left_for_the_cluster_to_fill_in(serving_spec: Make) -> None:
    server = replace(VLLM, args=(*VLLM.args, "--api-key=$(API_KEY)"))
    (main,) = pod_of(spec_of(serving_spec, server, env_from=[{"secretRef": {"name": "keys"}}]))["containers"]
    assert main["args"][-1] == "--api-key=$(API_KEY)"


# The choice.

PYFUNC = {"python_function": {"loader_module": "mlflow.sklearn"}}


@pytest.mark.parametrize(
    ("flavors", "server"),
    [
        ({"sklearn": {}} | PYFUNC, MLFLOW),
        ({"onnx": {"data": "model.onnx"}} | PYFUNC, TRITON),
        ({"onnx": None}, TRITON),
        (
            {"tensorflow": {"saved_model_dir": "tf2model", "model_type": "tf2-module"}} | PYFUNC,
            TENSORFLOW_SERVING,
        ),
        ({"tensorflow": {"data": "data", "model_type": "keras", "save_format": "tf"}} | PYFUNC, MLFLOW),
        ({"pytorch": {"extra_files": [{"path": "extra_files/delay.mar"}]}} | PYFUNC, TORCHSERVE),
        ({"pytorch": {"model_data": "data", "extra_files": None}} | PYFUNC, MLFLOW),
        ({"transformers": {"task": "text-generation"}} | PYFUNC, VLLM),
        ({"transformers": {"task": "llm/v1/chat"}} | PYFUNC, VLLM),
        ({"transformers": {"task": "text-classification"}} | PYFUNC, MLFLOW),
        ({"transformers": "not a mapping"} | PYFUNC, MLFLOW),
    ],
)
def test_the_server_made_for_the_format_is_chosen_where_it_can_load_the_files(
    flavors: Mapping[str, Any], server: ModelServer
) -> None:
    assert choose(flavors) is server


@pytest.mark.parametrize("flavors", [{}, {"spark": {}}, {"tensorflow": {"model_type": "keras"}}])
def test_a_version_that_nobody_can_load_is_told_who_is_known(flavors: Json) -> None:
    with pytest.raises(ConfigurationError) as caught:
        choose(flavors)
    for server in KNOWN:
        if server.flavors:
            assert server.name in str(caught.value)
    assert "OWN" in str(caught.value)


def test_servers_go_by_their_names() -> None:
    assert [named(server.name) for server in KNOWN] == list(KNOWN)
    with pytest.raises(ConfigurationError, match=r"triton, .*own"):
        named("bentoml")


def test_who_names_the_version_says_where() -> None:
    named_in = {server.name: server.version_header or server.version_field for server in KNOWN}
    assert named_in == {
        "mlflow": "x-model-version",
        "triton": "model_version",
        "mlserver": "model_version",
        "vllm": "model",
        "tensorflow-serving": None,
        "torchserve": None,
        "own": None,
    }
    assert [server.names_version for server in KNOWN] == [bool(named_in[server.name]) for server in KNOWN]
    assert VLLM.filled(model="delay", version="4", port=1).version_value == "delay:4"


# What the init container does: the launcher as the pod runs it.


def fetch(spec: ServingSpec, folder: Path) -> subprocess.CompletedProcess[str]:
    (container,) = pod_of(spec)["initContainers"]
    _, option, program = container["command"]
    arguments = [argument.replace("/nighttrain", str(folder)) for argument in container["args"]]
    env = {item["name"]: item["value"] for item in container["env"] if "value" in item}
    return subprocess.run(
        [sys.executable, option, program.replace("$$(", "$("), *arguments],
        env=env | {"PYTHONPATH": str(FAKE_IMAGE)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_version_and_the_servers_files_are_brought_for_any_user_to_read(
    store: Any, serving_spec: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "volume"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "left-over").write_text("of a try that was cut short")
    digest = store.add("4")
    (store.path / "airline-delay" / "4" / "model.txt").chmod(0o600)
    spec = spec_of(serving_spec, TENSORFLOW_SERVING, version="4", artifact_digest=digest)
    assert fetch(spec, folder).returncode == 0
    assert fetch(spec, folder).returncode == 0  # a node that restarts runs it once more
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        *("model/MLmodel", "model/model.txt", "model/code/änder.py", "model/registered_model_meta"),
        "files/monitoring.config",
    }
    for path in (folder / "model").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644)
    assert "/monitoring/prometheus/metrics" in (folder / "files" / "monitoring.config").read_text()


def test_an_artifact_that_is_another_one_is_not_brought(
    store: Any, serving_spec: Make, tmp_path: Path
) -> None:
    store.add("4")
    ended = fetch(spec_of(serving_spec, TRITON, version="4", artifact_digest="a" * 64), tmp_path)
    assert ended.returncode == EXIT_DIGEST_MISMATCH
    assert "a" * 64 in ended.stderr
    assert not (tmp_path / "model").exists()


# A server of one's own, in a pod.

PROGRAM = """
import http.server, os, pathlib, sys
version, port = sys.argv[1:]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = pathlib.Path("/nighttrain/model/model.txt").read_text()
        self.send_response(200)
        self.send_header("x-version", version)
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer((os.environ["POD_IP"], int(port)), Handler).serve_forever()
"""


async def test_a_server_of_ones_own_serves_what_was_registered_and_nothing_else(
    store: Any, serving_spec: Make, client: ClusterClient, tmp_path: Path
) -> None:
    namespaces = MountNamespaces(tmp_path / "namespaces")
    await namespaces.start()
    refusal = namespaces.refusal
    namespaces.close()
    if refusal:
        pytest.skip(f"no mount namespaces here: {refusal}")
    command = ("python", "-c", PROGRAM, "{version}", "{port}")
    own = replace(OWN, command=command, version_header="x-version", request_path="/")
    address = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    given = {
        "image": "model-server",
        "drain_seconds": 0.0,
        "env_vars": [{"name": "FAKE_STORE", "value": str(store.path)}, address],
    }
    rollout = Rollout(KubernetesDeployments(client))
    status = await rollout.run(
        spec_of(serving_spec, own, version="4", artifact_digest=store.add("4"), **given)
    )
    async with httpx.AsyncClient(trust_env=False) as web:
        answer = await web.get(status.cluster_ip_url)
        assert (answer.text, answer.headers[str(own.version_header)]) == ("version 4", "4")
        store.add("5")
        with pytest.raises(RolloutFailedError, match="exit code 78"):
            await rollout.run(spec_of(serving_spec, own, version="5", artifact_digest="a" * 64, **given))
        assert (await web.get(status.cluster_ip_url)).text == "version 4"
