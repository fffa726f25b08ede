"""Files for a Job's container: on their way there, after crashes, and when the Job goes."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import pytest

from helpers import shipped_functions as written
from helpers.polling import until_async
from nighttrain.providers.attempts.lifecycle import cancel, observe, submit, wait
from nighttrain.providers.errors import ConfigurationError, ObjectNotFoundError, WorkloadConflictError
from nighttrain.providers.kubernetes.api.client import CONFIGMAPS, JOBS, ClusterClient
from nighttrain.providers.kubernetes.job import config_map as config_map_module
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.config_map import config_map
from nighttrain.providers.kubernetes.job.job_manifest import build_job
from nighttrain.providers.kubernetes.job.kinds import JOB
from nighttrain.providers.kubernetes.job.shipped_code import ship
from nighttrain.providers.kubernetes.job.shipped_files import MAX_BYTES, check_files
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.outcome.outcome import (
    Observation,
    OutcomeKind,
    Phase,
)
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.submitted_workload import Workload
from nighttrain.providers.kubernetes.values.timeouts import Timeouts

_numbers = count(1)
HASH = "nighttrain.dev/spec-hash"


def identity() -> WorkloadIdentity:
    return WorkloadIdentity(
        orchestrator="airflow", dag_id="files", run_id=f"{next(_numbers)}", task_id="train"
    )


def spec(files: dict[str, str] | None = None, **fields: Any) -> WorkloadSpec:
    given = {"image": "py", "cmds": ["python", "/nighttrain/train.py"], "termination_grace_period": 1}
    return WorkloadSpec(**(given | {"files": files or {"train.py": "print('trained')"}} | fields))


async def end(client: ClusterClient, workload: Workload) -> Any:
    async with asyncio.timeout(30):
        return await wait(client, workload, timeouts=Timeouts(25))


async def gone(client: ClusterClient, name: str) -> None:
    async def is_gone() -> bool:
        try:
            await client.get(CONFIGMAPS, "default", name)
        except ObjectNotFoundError:
            return True
        return False

    await until_async(is_gone)


async def jobs_of(client: ClusterClient, who: WorkloadIdentity) -> list[dict[str, Any]]:
    listed = await client.list(JOBS, "default", label_selector=f"nighttrain.dev/attempt-key={who.key}")
    return list(listed["items"])


async def test_a_pod_runs_the_shipped_function_with_its_arguments(
    client: ClusterClient, tmp_path: Any
) -> None:
    files = ship(written.train, [0.5], {"names": ["ä"]})
    asked = spec(files, env_vars={"RESULT": str(tmp_path / "result.json"), "PYTHONUTF8": "1"})
    workload = await submit(client, check_workload(asked), identity(), namespace="default")
    outcome = await end(client, workload)
    assert outcome.succeeded, outcome.explain()
    assert '"names": ["\\u00e4"]' in (tmp_path / "result.json").read_text("utf-8")
    made = await client.get(CONFIGMAPS, "default", workload.name)
    assert (made["data"], made["immutable"]) == (files, True)
    (owner,) = made["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("Job", workload.name, workload.uid)
    job = await client.get(JOBS, "default", workload.name)
    assert made["metadata"]["labels"].items() <= job["metadata"]["labels"].items()
    assert "nighttrain.dev/attempt-key" in made["metadata"]["labels"]

    await cancel(client, workload)
    await gone(client, workload.name)


async def test_after_a_crash_before_the_files_the_pod_waits_and_the_next_worker_brings_them(
    client: ClusterClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = identity()

    async def crash(*_: Any) -> None:
        raise SystemError("the worker is killed here")

    with monkeypatch.context() as patched:
        patched.setattr(config_map_module, "_create", crash)
        with pytest.raises(SystemError):
            await submit(client, check_workload(spec()), who, namespace="default")
    (job,) = await jobs_of(client, who)
    held = Workload("default", job["metadata"]["name"], job["metadata"]["uid"], 1)

    async def misses_its_files() -> Observation | None:
        seen = await observe(client, held)
        return seen if "FailedMount" in seen.detail else None

    seen = await until_async(misses_its_files)
    assert (seen.phase, seen.outcome) == (Phase.WAITING, None)

    adopted = await submit(client, check_workload(spec()), who, namespace="default")
    assert (adopted.uid, adopted.adopted) == (held.uid, True)
    outcome = await end(client, adopted)
    assert outcome.kind is OutcomeKind.SUCCEEDED, outcome.explain()


async def test_adopting_twice_makes_the_files_once(client: ClusterClient) -> None:
    who = identity()
    waiting = spec({"train.py": "import time; time.sleep(60)"})
    first = await submit(client, check_workload(waiting), who, namespace="default")
    made = await client.get(CONFIGMAPS, "default", first.name)
    second, third = await asyncio.gather(
        *(submit(client, check_workload(waiting), who, namespace="default") for _ in range(2))
    )
    assert first.uid == second.uid == third.uid
    assert (await client.get(CONFIGMAPS, "default", first.name))["metadata"]["uid"] == made["metadata"]["uid"]
    await cancel(client, first)


async def test_another_source_is_another_workload(client: ClusterClient) -> None:
    who = identity()
    first = await submit(
        client, check_workload(spec({"train.py": "import time; time.sleep(60)"})), who, namespace="default"
    )
    second = await submit(client, check_workload(spec()), who, namespace="default")
    assert (second.adopted, second.attempt) == (False, 2)
    assert (await end(client, second)).succeeded
    await gone(client, first.name)


async def test_files_of_an_earlier_job_of_the_name_are_waited_out(client: ClusterClient) -> None:
    who = identity()
    blueprint = build_job(check_workload(spec()), who, 1)
    earlier = {"metadata": {**blueprint["metadata"], "namespace": "default"}, "spec": blueprint["spec"]}
    earlier["spec"]["suspend"] = True
    old = await client.create(JOBS, "default", earlier)
    await client.create(CONFIGMAPS, "default", config_map({"train.py": "print('old')"}, old, JOB))
    await client.delete(JOBS, "default", old["metadata"]["name"], uid=old["metadata"]["uid"])
    workload = await submit(client, check_workload(spec()), who, namespace="default")
    assert (await end(client, workload)).succeeded
    (owner,) = (await client.get(CONFIGMAPS, "default", workload.name))["metadata"]["ownerReferences"]
    assert owner["uid"] == workload.uid


async def test_somebody_elses_config_map_of_the_name_is_left_alone_and_no_job_remains(
    client: ClusterClient,
) -> None:
    who = identity()
    name = who.name(1)
    foreign = {"metadata": {"name": name}, "data": {"train.py": "print('theirs')"}}
    await client.create(CONFIGMAPS, "default", foreign)
    with pytest.raises(WorkloadConflictError, match="belongs to something else"):
        await submit(client, check_workload(spec()), who, namespace="default")

    async def no_job_remains() -> bool:
        return not await jobs_of(client, who)

    await until_async(no_job_remains)
    kept = await client.get(CONFIGMAPS, "default", name)
    assert kept["data"] == foreign["data"]


async def test_without_files_no_config_map_is_asked_for(client: ClusterClient) -> None:
    bare = WorkloadSpec(image="py", cmds=["python", "-c", "pass"])
    workload = await submit(client, check_workload(bare), identity(), namespace="default")
    assert (await end(client, workload)).succeeded
    with pytest.raises(ObjectNotFoundError):
        await client.get(CONFIGMAPS, "default", workload.name)


# Without a cluster.


def test_the_hash_says_what_the_files_say_and_not_in_which_order_or_where() -> None:
    who, other = identity(), identity()

    def hashed(files: dict[str, str], of: WorkloadIdentity = who, attempt: int = 1) -> str:
        return str(build_job(check_workload(spec(files)), of, attempt)["metadata"]["annotations"][HASH])

    same = hashed({"a": "1", "b": "2"})
    assert same == hashed({"b": "2", "a": "1"}) == hashed({"a": "1", "b": "2"}, other, 7)
    others = [{"a": "1", "b": "3"}, {"a": "1", "c": "2"}, {"a": "12", "b": ""}]
    assert len({same, *map(hashed, others)}) == 4


@pytest.mark.parametrize("name", ["", ".", "..", "..data", ".hidden", "a/b", "ä", "a" * 254, "a\n", 1])
def test_a_name_that_no_file_can_have_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="a file's name"):
        check_files({name: ""})


def test_files_are_text_of_at_most_one_mebibyte_in_all() -> None:
    check_files({"a": "x" * (MAX_BYTES - 2), "b": "ä"})
    with pytest.raises(ConfigurationError, match="pass where the data are"):
        check_files({"a": "x" * (MAX_BYTES - 1), "b": "ä"})
    with pytest.raises(ConfigurationError, match="must be text"):
        check_workload(spec({"a": b"x"}))  # type: ignore[dict-item]


def test_nothing_else_may_be_mounted_where_the_files_are() -> None:
    elsewhere = {"volumes": [{"name": "v", "emptyDir": {}}]}
    with pytest.raises(ConfigurationError, match="the shipped files are there"):
        build_job(
            check_workload(spec(**elsewhere, volume_mounts=[{"name": "v", "mountPath": "/nighttrain/"}])),
            identity(),
            1,
        )
    with pytest.raises(ConfigurationError, match="this name is reserved"):
        build_job(check_workload(spec(volumes=[{"name": "nighttrain-files", "emptyDir": {}}])), identity(), 1)


@pytest.mark.parametrize("level", ["baseline", "restricted"])
def test_the_main_container_reads_the_files_and_others_do_not(level: str) -> None:
    init = [{"name": "fetch", "image": "py"}]
    pod = build_job(check_workload(spec(pod_security=level, init_containers=init)), identity(), 1)["spec"][
        "template"
    ]["spec"]
    mount = {"name": "nighttrain-files", "mountPath": "/nighttrain", "readOnly": True}
    assert pod["containers"][0]["volumeMounts"] == [mount]
    assert "volumeMounts" not in pod["initContainers"][0]
    assert WorkloadSpec(image="py").files is None
