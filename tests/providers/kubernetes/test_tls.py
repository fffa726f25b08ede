"""What a real API server has and the embedded one has not: TLS, client certificates, tokens that expire."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import sys
import textwrap
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import stamina
import yaml

from helpers.certificates import Authority
from helpers.server_proxy import ForwardProxy, SeenRequest, ServerProxy, api_refusal
from nighttrain.providers import errors
from nighttrain.providers.attempts import lifecycle
from nighttrain.providers.kubernetes.api import loading, session
from nighttrain.providers.kubernetes.api.client import CONFIGMAPS, JOBS, PODS, ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.logs import logs
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from aiohttp import web

NAMESPACE = "default"
_numbers = count()


@pytest.fixture(autouse=True)
def no_pauses_and_no_proxies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(images={"py": sys.executable}, trust_own_user=False) as running:
        yield running


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


class Gate:
    """Which tokens are good just now, or any client certificate if there are none."""

    def __init__(self) -> None:
        self.tokens: set[str] = set()

    def __call__(self, seen: SeenRequest) -> web.Response | None:
        if seen.token in self.tokens or (not self.tokens and seen.certificate):
            return None
        return api_refusal(401, "Unauthorized", "Unauthorized")


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def proxy(cluster: EmbeddedCluster, authority: Authority, gate: Gate) -> AsyncIterator[ServerProxy]:
    async with ServerProxy(cluster.url, cluster.token, server=authority.issue("api"), judge=gate) as standing:
        yield standing


def opened(content: dict[str, Any], **given: Any) -> Any:
    return ClusterClient.open(ClusterConfig(kubeconfig_content=content, **given))


def identity() -> WorkloadIdentity:
    run = f"run-{next(_numbers)}"
    return WorkloadIdentity(orchestrator="airflow", dag_id="tls", run_id=run, task_id="train")


async def trained(client: ClusterClient) -> list[str]:
    """Submit, follow the log, wait: a list of the lines."""
    code = "print('one'); print('two')"
    what = WorkloadSpec(image="py", cmds=["python", "-u", "-c", code], termination_grace_period=1)
    job = await lifecycle.submit(client, check_workload(what), identity(), namespace=NAMESPACE)
    lines: list[str] = []
    async with asyncio.timeout(60):
        following = asyncio.create_task(logs.follow(client, job, lines.append))
        outcome = await lifecycle.wait(client, job, timeouts=Timeouts(30))
        await following
    assert outcome.succeeded
    return lines


async def test_a_training_over_mutual_tls(cluster: EmbeddedCluster, authority: Authority, gate: Gate) -> None:
    certificate, key = authority.issue("nightly").data()
    server = authority.issue("api")
    async with ServerProxy(cluster.url, cluster.token, server=server, clients=authority, judge=gate) as proxy:
        user = {"client-certificate-data": certificate, "client-key-data": key}
        async with await opened(proxy.kubeconfig(authority, **user)) as client:
            assert await trained(client) == ["one", "two"]
    assert {seen.certificate for seen in proxy.seen} == {"nightly"}
    assert {seen.token for seen in proxy.seen} == {""}
    assert any(seen.query.get("watch") for seen in proxy.seen)
    assert any(seen.path.endswith("/log") for seen in proxy.seen)


async def test_a_training_over_tls_with_a_token(proxy: ServerProxy, authority: Authority, gate: Gate) -> None:
    gate.tokens = {"good"}
    async with await opened(proxy.kubeconfig(authority, token="good")) as client:
        assert await trained(client) == ["one", "two"]
    async with await opened(proxy.kubeconfig(authority, token="bad")) as client:
        with pytest.raises(errors.ClusterUnauthorizedError, match="renew the token"):
            await client.list(JOBS, NAMESPACE)


async def test_an_unknown_authority_is_named_with_what_to_set_and_tried_once(
    proxy: ServerProxy, gate: Gate
) -> None:
    gate.tokens = {"good"}
    async with await opened(proxy.kubeconfig(Authority("another"), token="good")) as client:
        with pytest.raises(
            errors.ClusterUnreachableError,
            match=r"not trusted: (?s:.*)Set certificate-authority-data .* of the cluster in the kubeconfig",
        ):
            await client.list(JOBS, NAMESPACE)
        with pytest.raises(errors.ClusterUnreachableError, match="not trusted"):
            await anext(client.watch(PODS, NAMESPACE, resource_version="0"))
    assert proxy.seen == []


async def test_a_name_that_the_certificate_does_not_have(
    cluster: EmbeddedCluster, authority: Authority, gate: Gate
) -> None:
    gate.tokens = {"good"}
    server = authority.issue("api", addresses=("10.96.0.1",))
    async with ServerProxy(cluster.url, cluster.token, server=server, judge=gate) as proxy:
        content = proxy.kubeconfig(authority, token="good")
        async with await opened(content) as client:
            with pytest.raises(errors.ClusterUnreachableError, match="set tls-server-name"):
                await client.list(JOBS, NAMESPACE)
        content["clusters"][0]["cluster"]["tls-server-name"] = "kubernetes.default.svc"
        async with await opened(content) as client:
            assert (await client.list(JOBS, NAMESPACE))["kind"] == "JobList"


async def test_an_expired_server_certificate(
    cluster: EmbeddedCluster, authority: Authority, gate: Gate
) -> None:
    server = authority.issue("api", days=-1)
    async with (
        ServerProxy(cluster.url, cluster.token, server=server, judge=gate) as proxy,
        await opened(proxy.kubeconfig(authority, token="good")) as client,
    ):
        with pytest.raises(errors.ClusterUnreachableError, match=r"expired\. Renew the server's"):
            await client.list(JOBS, NAMESPACE)


async def test_verification_can_be_turned_off(proxy: ServerProxy, gate: Gate) -> None:
    gate.tokens = {"good"}
    content = proxy.kubeconfig(token="good")
    async with await opened(content, verify_ssl=False) as client:
        assert (await client.list(JOBS, NAMESPACE))["kind"] == "JobList"
    content["clusters"][0]["cluster"]["insecure-skip-tls-verify"] = True
    async with await opened(content) as client:
        assert (await client.list(JOBS, NAMESPACE))["kind"] == "JobList"


async def test_plain_http_on_a_port_for_tls_is_said(cluster: EmbeddedCluster) -> None:
    async with ServerProxy(cluster.url, cluster.token) as proxy:
        content = proxy.kubeconfig(token="good")
        content["clusters"][0]["cluster"]["server"] = proxy.url.replace("http:", "https:")
        async with await opened(content) as client:
            with pytest.raises(errors.ClusterUnreachableError, match="does not speak TLS"):
                await client.list(JOBS, NAMESPACE)


async def test_connections_that_the_server_closed_meanwhile(
    proxy: ServerProxy, authority: Authority, gate: Gate
) -> None:
    gate.tokens = {"good"}
    async with await opened(proxy.kubeconfig(authority, token="good")) as client:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"c-{next(_numbers)}"}}
        await client.create(CONFIGMAPS, NAMESPACE, body)
        assert proxy.close_idle() >= 1
        await client.get(CONFIGMAPS, NAMESPACE, body["metadata"]["name"])
        # The close and the next request cross on the way: a request that is not idempotent for HTTP, too.
        for change in ({"a": "1"}, {"a": "2"}):
            proxy.cut = 1
            await client.patch(CONFIGMAPS, NAMESPACE, body["metadata"]["name"], {"data": change})
            assert proxy.cut == 0
        assert (await client.get(CONFIGMAPS, NAMESPACE, body["metadata"]["name"]))["data"] == {"a": "2"}
        await client.delete(CONFIGMAPS, NAMESPACE, body["metadata"]["name"])


async def test_certificates_that_are_renewed_on_disk(
    cluster: EmbeddedCluster, authority: Authority, tmp_path: Path
) -> None:
    good = {"new"}

    def judge(seen: SeenRequest) -> web.Response | None:
        return None if seen.certificate in good else api_refusal(401, "Unauthorized", "Unauthorized")

    server = authority.issue("api")
    async with ServerProxy(
        cluster.url, cluster.token, server=server, clients=authority, judge=judge
    ) as proxy:
        crt, key, path = (tmp_path / name for name in ("crt", "key", "config"))

        def write(name: str) -> None:
            pair = authority.issue(name)
            crt.write_bytes(pair.certificate)
            key.write_bytes(pair.key)

        write("old")
        user = {"client-certificate": "crt", "client-key": "key"}
        path.write_text(yaml.safe_dump(proxy.kubeconfig(authority, **user)))
        async with await ClusterClient.open(ClusterConfig(kubeconfig=str(path))) as client:
            with pytest.raises(errors.ClusterUnauthorizedError):
                await client.list(JOBS, NAMESPACE)
            write("new")
            assert (await client.list(JOBS, NAMESPACE))["kind"] == "JobList"
    assert [seen.certificate for seen in proxy.seen] == ["old", "old", "new"]


async def test_certificates_outlive_the_temporary_files_of_the_library(
    cluster: EmbeddedCluster, authority: Authority
) -> None:
    from kubernetes_asyncio.config import kube_config

    certificate, key = authority.issue("nightly").data()
    async with ServerProxy(
        cluster.url, cluster.token, server=authority.issue("api"), clients=authority
    ) as proxy:
        user = {"client-certificate-data": certificate, "client-key-data": key}
        for _ in range(2):
            async with await opened(proxy.kubeconfig(authority, **user)) as client:
                assert (await client.list(JOBS, NAMESPACE))["kind"] == "JobList"
            for name in kube_config._temp_files.values():
                os.unlink(name)  # what cleans a machine's temporary folder does


async def test_a_list_of_kubeconfigs_may_name_files_that_are_not_there(
    proxy: ServerProxy, authority: Authority, gate: Gate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gate.tokens = {"good"}
    whole = proxy.kubeconfig(authority, token="good")
    users = {"apiVersion": "v1", "kind": "Config", "users": whole.pop("users")}
    (tmp_path / "clusters").write_text(yaml.safe_dump(whole))
    (tmp_path / "users").write_text(yaml.safe_dump(users))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(["~/absent", "~/clusters", "", "~/users"]))
    async with await ClusterClient.open(ClusterConfig()) as client:
        assert (await client.list(JOBS, NAMESPACE))["kind"] == "JobList"


# Proxies and other things of the environment.


@pytest.mark.parametrize(
    ("server", "exceptions", "proxied"),
    [
        ("https://api.example.com:6443", "", True),
        ("https://api.example.com:6443", "example.com", False),
        ("https://api.example.com:6443", ".example.com", False),
        ("https://api.example.com:6443", "*.example.com", False),
        ("https://api.example.com:6443", "ample.com", True),
        ("https://api.example.com:6443", "api.example.com:6443", False),
        ("https://api.example.com:6443", "api.example.com:443", True),
        ("https://10.96.0.1", "localhost, 10.0.0.0/8", False),
        ("https://10.96.0.1", "10.96.0.1", False),
        ("https://11.96.0.1", "10.0.0.0/8", True),
        ("https://[fd00::1]:443", "fd00::/8", False),
        ("https://[fd00::1]:443", "[fd00::1]", False),
        ("https://[fd00::1]:443", "10.0.0.0/8", True),
        ("https://api.example.com", "*", False),
        ("https://127.0.0.1:6443", "", False),
        ("https://localhost:6443", "", False),
        ("http://api.example.com", "", False),
    ],
)
def test_which_servers_are_reached_through_a_proxy(
    server: str, exceptions: str, proxied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy:3128")
    monkeypatch.setenv("NO_PROXY", exceptions)
    assert session.environment_proxy(server) == ("http://proxy:3128" if proxied else None)


async def test_a_proxy_of_the_environment_and_of_the_kubeconfig(
    proxy: ServerProxy, authority: Authority, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.tokens = {"good"}
    content = proxy.kubeconfig(authority, token="good")
    content["clusters"][0]["cluster"]["server"] = f"https://kubernetes.test:{proxy.port}"
    async with ForwardProxy(proxy.port) as web_proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:s3cret@127.0.0.1:{web_proxy.port}")
        async with await opened(content) as client:
            assert (await client.list(JOBS, NAMESPACE))["kind"] == "JobList"
        (head,) = web_proxy.asked
        assert head[0].startswith(f"CONNECT kubernetes.test:{proxy.port} ")
        assert "Proxy-Authorization: Basic bWU6czNjcmV0" in head
        monkeypatch.setenv("NO_PROXY", "kubernetes.test")
        async with await opened(content) as client:
            with pytest.raises(errors.ClusterUnreachableError):  # nobody knows that name
                await client.list(JOBS, NAMESPACE)
        named = copy.deepcopy(content)
        named["clusters"][0]["cluster"]["proxy-url"] = f"http://127.0.0.1:{web_proxy.port}"
        async with await opened(named) as client:
            assert (await client.list(JOBS, NAMESPACE))["kind"] == "JobList"
        assert len(web_proxy.asked) == 2


async def test_a_proxy_that_is_down_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, proxy: ServerProxy, unused_tcp_port: int
) -> None:
    content = proxy.kubeconfig(authority, token="good")
    content["clusters"][0]["cluster"]["server"] = "https://kubernetes.test:6443"
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:s3cret@127.0.0.1:{unused_tcp_port}")
    async with await opened(content) as client:
        with pytest.raises(errors.ClusterUnreachableError) as raised:
            await client.list(JOBS, NAMESPACE)
    assert f"through the proxy http://127.0.0.1:{unused_tcp_port}" in str(raised.value)
    assert "s3cret" not in str(raised.value)
    content["clusters"][0]["cluster"]["proxy-url"] = "socks5://127.0.0.1:1080"
    with pytest.raises(errors.ConfigurationError, match="only http and https proxies"):
        await opened(content)


async def test_a_netrc_does_not_get_in_the_way(
    proxy: ServerProxy, authority: Authority, gate: Gate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password s3cret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    gate.tokens = {"good"}
    async with await opened(proxy.kubeconfig(authority, token="good")) as client:
        assert (await client.list(JOBS, NAMESPACE))["kind"] == "JobList"


# Inside a pod.


@pytest.fixture
def pod(proxy: ServerProxy, authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the service account, in a pod of the cluster behind the proxy."""
    from kubernetes_asyncio.config import incluster_config

    (tmp_path / "ca.crt").write_bytes(authority.pem)
    (tmp_path / "token").write_text("first")
    (tmp_path / "namespace").write_text("ml\n")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(loading, "SERVICE_ACCOUNT_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(proxy.port))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("config", [ClusterConfig(in_cluster=True), ClusterConfig()])
async def test_inside_a_pod_a_rotated_token_is_read_again(
    config: ClusterConfig, proxy: ServerProxy, gate: Gate, pod: Path
) -> None:
    gate.tokens = {"first"}
    async with await ClusterClient.open(config) as client:
        assert client.namespace == "ml"
        await client.list(JOBS, NAMESPACE)
        gate.tokens = {"second"}
        (pod / "token").write_text("second\n")
        await client.list(JOBS, NAMESPACE)
        await client.list(JOBS, NAMESPACE)
    assert [seen.token for seen in proxy.seen] == ["first", "first", "second", "second"]


async def test_inside_a_pod_a_token_that_is_gone_is_said(gate: Gate, pod: Path) -> None:
    gate.tokens = {"second"}
    async with await ClusterClient.open(ClusterConfig(in_cluster=True)) as client:
        (pod / "token").unlink()
        with pytest.raises(errors.ClusterUnauthorizedError):
            await client.list(JOBS, NAMESPACE)
    with pytest.raises(errors.ConfigurationError, match="token file does not exist"):
        await ClusterClient.open(ClusterConfig(in_cluster=True))


# Credential plugins.


def plugin(tmp_path: Path, status_code: str) -> dict[str, Any]:
    """The user of a kubeconfig whose plugin counts its runs in a file."""
    script = tmp_path / "plugin.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import json, os, pathlib, sys
            file = pathlib.Path({str(tmp_path / "runs")!r})
            run = len(file.read_text()) + 1 if file.exists() else 1
            file.write_text("x" * run)
            asked = json.loads(os.environ["KUBERNETES_EXEC_INFO"])
            status = {status_code}
            print(json.dumps({{"apiVersion": asked["apiVersion"], "kind": asked["kind"], "status": status}}))
            """
        )
    )
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": sys.executable,
            "args": ["-S", "-E", str(script)],
            "env": [{"name": "PREFIX", "value": "token"}],
            "interactiveMode": "Never",
        }
    }


async def test_a_plugins_token_is_renewed_once_for_all_who_were_refused(
    proxy: ServerProxy, authority: Authority, gate: Gate, tmp_path: Path
) -> None:
    user = plugin(tmp_path, "{'token': os.environ['PREFIX'] + str(run)}")
    gate.tokens = {"token1"}
    async with await opened(proxy.kubeconfig(authority, **user)) as client:
        await client.list(JOBS, NAMESPACE)
        gate.tokens = {"token2"}
        await asyncio.gather(*(client.list(JOBS, NAMESPACE) for _ in range(5)))
        assert (tmp_path / "runs").read_text() == "xx"
        gate.tokens = {"none"}
        with pytest.raises(errors.ClusterUnauthorizedError):
            await client.list(JOBS, NAMESPACE)


async def test_a_plugin_may_give_certificates(
    cluster: EmbeddedCluster, authority: Authority, tmp_path: Path
) -> None:
    pair = authority.issue("from-the-plugin")
    told = {"clientCertificateData": pair.certificate.decode(), "clientKeyData": pair.key.decode()}
    async with (
        ServerProxy(cluster.url, cluster.token, server=authority.issue("api"), clients=authority) as proxy,
        await opened(proxy.kubeconfig(authority, **plugin(tmp_path, repr(told)))) as client,
    ):
        await client.list(JOBS, NAMESPACE)
    assert [seen.certificate for seen in proxy.seen] == ["from-the-plugin"]


async def test_a_plugin_that_fails_or_is_not_there(
    proxy: ServerProxy, authority: Authority, tmp_path: Path
) -> None:
    user = plugin(tmp_path, "sys.exit('log in first')")
    with pytest.raises(errors.ClusterUnauthorizedError, match=r"credential plugin(?s:.*)log in first"):
        await opened(proxy.kubeconfig(authority, **user))
    user["exec"]["command"] = "no-such-auth-plugin"
    with pytest.raises(errors.ClusterUnauthorizedError, match=r"'no-such-auth-plugin'.*Install it"):
        await opened(proxy.kubeconfig(authority, **user))


# A kubeconfig inside an Airflow connection.


async def test_an_airflow_connection_with_a_kubeconfig_of_several_contexts(
    proxy: ServerProxy, authority: Authority, gate: Gate
) -> None:
    from nighttrain.sensors.common.connections import cluster_connection

    gate.tokens = {"good"}
    content = proxy.kubeconfig(authority, token="good")
    elsewhere = {"cluster": "far", "user": "nobody", "namespace": "far"}
    content["contexts"].insert(0, {"name": "far", "context": elsewhere})
    content["clusters"].insert(0, {"name": "far", "cluster": {"server": "https://far.test"}})
    content["users"].insert(0, {"name": "nobody", "user": {}})
    content["current-context"] = "far"
    for stored in (content, json.dumps(content)):
        extra = {"kube_config": stored, "cluster_context": "here", "pod_security": "restricted"}
        made = cluster_connection(SimpleNamespace(conn_id="k", extra_dejson=extra))  # type: ignore[arg-type]
        assert made.pod_security == "restricted"
        async with await ClusterClient.open(made.config) as client:
            assert (client.server, client.namespace) == (proxy.url, "default")
            assert (await client.list(JOBS, NAMESPACE))["kind"] == "JobList"
    with pytest.raises(errors.ConfigurationError, match="absent"):
        await opened(content, context="absent")
