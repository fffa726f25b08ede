"""Pods that run: phases, containers, environment, ends."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from helpers.conformance_client import FAILS, PASSES, WAIT_SECONDS, condition, conditions, config_map, refusal

if TYPE_CHECKING:
    from helpers.conformance_client import Object, Space

SLEEP = "import time; time.sleep(600)"


def state(pod: Object, name: str = "main", group: str = "containerStatuses") -> Object:
    """The state of a container: ``{"waiting" | "running" | "terminated": {...}}``."""
    found = [each for each in pod["status"].get(group) or [] if each["name"] == name]
    answer: Object = found[0]["state"] if found else {}
    return answer


def status_of(pod: Object, name: str = "main") -> Object:
    found = [each for each in pod["status"].get("containerStatuses") or [] if each["name"] == name]
    return found[0] if found else {}


def running(pod: Object) -> bool:
    return pod["status"].get("phase") == "Running"


def test_a_pod_that_ends_with_0_succeeded(space: Space) -> None:
    """Pod Lifecycle, Pod phase: Pending, Running, Succeeded."""
    # A kubelet looks once a second and may miss what is shorter.
    created = space.run("one", "import time; time.sleep(3)")
    history = space.history("pods", created, lambda pod: pod["status"].get("phase") == "Succeeded")
    phases = list(dict.fromkeys(pod["status"]["phase"] for pod in history))
    assert phases == ["Pending", "Running", "Succeeded"]
    terminated = state(history[-1])["terminated"]
    assert (terminated["exitCode"], terminated["reason"]) == (0, "Completed")
    assert terminated["startedAt"] <= terminated["finishedAt"]


def test_a_pod_that_ends_otherwise_failed(space: Space) -> None:
    """Pod Lifecycle, Pod phase: Failed; Container states: the exit code."""
    space.run("one", "raise SystemExit(3)")
    pod = space.finished("one")
    assert pod["status"]["phase"] == "Failed"
    terminated = state(pod)["terminated"]
    assert (terminated["exitCode"], terminated["reason"]) == (3, "Error")


def test_a_running_pod_has_its_conditions(space: Space) -> None:
    """Pod Lifecycle, Pod conditions: scheduled, initialized, its containers ready, ready."""
    space.run("one", SLEEP)
    pod = space.wait("pods", "one", lambda pod: conditions(pod).get("Ready") == "True")
    expected = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    assert {kind: conditions(pod)[kind] for kind in expected} == dict.fromkeys(expected, "True")
    assert pod["spec"]["nodeName"]
    assert pod["status"]["podIP"]
    assert pod["status"]["startTime"]
    status = status_of(pod)
    assert (status["ready"], status["started"], status["restartCount"]) == (True, True, 0)


def test_a_finished_pod_is_not_ready(space: Space) -> None:
    """Pod Lifecycle, Pod conditions: a completed pod is not ready."""
    space.run("one", "pass")
    pod = space.finished("one")
    assert condition(pod, "Ready")["status"] == "False"
    assert condition(pod, "Ready")["reason"] == "PodCompleted"


def test_a_pod_that_no_node_is_good_for_waits(space: Space) -> None:
    """Assigning Pods to Nodes, nodeSelector: a pod is scheduled onto matching nodes only."""
    space.run("one", nodeSelector={"conformance": "no-such-node"})
    pod = space.wait("pods", "one", lambda pod: conditions(pod).get("PodScheduled") == "False")
    assert condition(pod, "PodScheduled")["reason"] == "Unschedulable"
    assert pod["status"]["phase"] == "Pending"
    assert space.event("FailedScheduling", "one")["type"] == "Warning"


def test_a_pod_that_asks_for_too_much_waits(space: Space) -> None:
    """Resource Management, How Pods with resource requests are scheduled."""
    space.run("one", container={"resources": {"requests": {"cpu": "10000"}}})
    pod = space.wait("pods", "one", lambda pod: conditions(pod).get("PodScheduled") == "False")
    assert "Insufficient cpu" in condition(pod, "PodScheduled")["message"]


def test_the_log_is_what_was_written(space: Space) -> None:
    """Logging Architecture, Basic logging: standard output and standard error."""
    space.run("one", "import sys; print('out'); print('err', file=sys.stderr)")
    space.finished("one")
    assert set(space.output("one").splitlines()) == {"out", "err"}


def test_the_end_of_a_log(space: Space) -> None:
    """Pod Log, tailLines: lines from the end; limitBytes."""
    space.run("one", "for i in range(5): print('line', i)")
    space.finished("one")
    assert space.output("one", tailLines=2) == "line 3\nline 4\n"
    assert space.output("one", limitBytes=4) == "line"


def test_a_log_with_times(space: Space) -> None:
    """Pod Log, timestamps: an RFC3339 time before every line."""
    space.run("one", "print('hello')")
    space.finished("one")
    time, _, text = space.output("one", timestamps="true").partition(" ")
    assert text == "hello\n"
    assert time[10] == "T"


def test_a_log_is_followed_to_its_end(space: Space) -> None:
    """Pod Log, follow: the stream lasts as long as the container."""
    space.run("one", "import time\nfor i in range(3): print('line', i); time.sleep(0.2)")
    space.wait("pods", "one", lambda pod: pod["status"]["phase"] != "Pending")
    assert space.output("one", follow="true") == "line 0\nline 1\nline 2\n"


def test_the_log_of_a_container_that_is_not_there(space: Space) -> None:
    """Pod Log, container: must be one of the pod's."""
    space.run("one", "pass")
    answer = space.cluster.call("GET", space.path("pods", "one", "log"), container="none")
    refusal(answer, 400, "BadRequest")


def test_the_container_must_be_named_where_there_are_several(space: Space) -> None:
    """Pod Log, container: defaults to the only container if there is one."""
    two = [space.container("pass", name=name) for name in ("a", "b")]
    space.create("pods", {"metadata": {"name": "one"}, "spec": space.pod_spec(containers=two)})
    answer = space.cluster.call("GET", space.path("pods", "one", "log"))
    refusal(answer, 400, "BadRequest")


def test_several_containers_each_have_an_end(space: Space) -> None:
    """Pod Lifecycle, Pod phase, Failed: all have terminated, and at least one in failure."""
    two = [space.container(f"raise SystemExit({code})", name=f"c{code}") for code in (0, 4)]
    space.create("pods", {"metadata": {"name": "one"}, "spec": space.pod_spec(containers=two)})
    pod = space.finished("one")
    assert pod["status"]["phase"] == "Failed"
    assert state(pod, "c0")["terminated"]["exitCode"] == 0
    assert state(pod, "c4")["terminated"]["exitCode"] == 4


def test_a_pod_runs_while_one_of_its_containers_does(space: Space) -> None:
    """Pod Lifecycle, Pod phase, Running: at least one container is still running."""
    two = [space.container("pass", name="short"), space.container(SLEEP, name="long")]
    space.create("pods", {"metadata": {"name": "one"}, "spec": space.pod_spec(containers=two)})
    pod = space.wait("pods", "one", lambda pod: "terminated" in state(pod, "short"))
    assert pod["status"]["phase"] == "Running"
    assert conditions(pod)["Ready"] == "False"


def test_init_containers_run_in_order_before_the_others(space: Space) -> None:
    """Init Containers, Understanding init containers: one after the other, to completion."""
    code = "import time; print(time.time())"
    inits = [space.container(code, name=name) for name in ("first", "second")]
    space.run("one", code, initContainers=inits)
    assert space.finished("one")["status"]["phase"] == "Succeeded"
    times = [float(space.output("one", container=name)) for name in ("first", "second", "main")]
    assert times == sorted(times)


def test_a_failed_init_container_fails_the_pod(space: Space) -> None:
    """Init Containers, Understanding init containers: with restartPolicy Never the pod has failed."""
    space.run("one", "print('never')", initContainers=[space.container("raise SystemExit(2)", name="init")])
    pod = space.finished("one")
    assert pod["status"]["phase"] == "Failed"
    assert state(pod, "init", "initContainerStatuses")["terminated"]["exitCode"] == 2
    assert state(pod)["waiting"]["reason"] == "PodInitializing"
    assert conditions(pod)["Initialized"] == "False"


def test_a_sidecar_starts_first_and_does_not_hold_the_pod(space: Space) -> None:
    """Sidecar Containers: init containers that restart always; terminated after the main container."""
    # It has started once its probe passes, which is long after its process began.
    code = (
        "import os, socket, time\n"
        "time.sleep(2)\n"
        "server = socket.create_server((os.environ['IP'], 8080))\n"
        "print(time.time())\n"
        "time.sleep(600)"
    )
    sidecar = space.container(
        code,
        name="side",
        restartPolicy="Always",
        env=[{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        startupProbe={"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 60},
    )
    space.run("one", "import time; print(time.time())", initContainers=[sidecar])
    pod = space.finished("one")
    assert pod["status"]["phase"] == "Succeeded"
    assert float(space.output("one", container="side")) < float(space.output("one", container="main"))
    ends = [
        state(pod, "main")["terminated"]["finishedAt"],
        state(pod, "side", "initContainerStatuses")["terminated"]["finishedAt"],
    ]
    assert ends == sorted(ends)


def test_the_message_of_an_end_is_the_files(space: Space) -> None:
    """Determine the Reason for Pod Failure: terminationMessagePath."""
    code = "open('/dev/termination-log', 'w').write('enough'); raise SystemExit(1)"
    # Where a pod has no file system of its own, another path is needed; both must work.
    path = "/tmp/conformance-message"  # noqa: S108 - in the container
    code = code.replace("/dev/termination-log", path)
    space.run("one", code, container={"terminationMessagePath": path})
    assert state(space.finished("one"))["terminated"].get("message") == "enough"


def test_the_message_of_an_end_falls_back_to_the_log(space: Space) -> None:
    """Customizing the termination message: FallbackToLogsOnError."""
    policy = {"terminationMessagePolicy": "FallbackToLogsOnError"}
    space.run("one", "print('boom'); raise SystemExit(1)", container=policy)
    assert state(space.finished("one"))["terminated"]["message"] == "boom\n"


def test_a_success_has_no_message_from_the_log(space: Space) -> None:
    """Customizing the termination message: the log is used if the container exited with an error."""
    space.run("one", "print('fine')", container={"terminationMessagePolicy": "FallbackToLogsOnError"})
    assert "message" not in state(space.finished("one"))["terminated"]


FAILS_ONCE = (
    "import os, time\n"
    "if not os.path.exists('/conformance/first'):\n"
    "    open('/conformance/first', 'w').close()\n"
    "    print('a first')\n"
    "    raise SystemExit(1)\n"
    "print('after a first', flush=True)\n"
    "time.sleep(600)"
)


def test_a_container_is_restarted_after_a_failure(space: Space) -> None:
    """Pod Lifecycle, Container restart policy, OnFailure: until it succeeds, in the same pod."""
    mounted = {"volumeMounts": [{"name": "data", "mountPath": "/conformance"}]}
    volumes = [{"name": "data", "emptyDir": {}}]
    space.run("one", FAILS_ONCE, container=mounted, volumes=volumes, restartPolicy="OnFailure")
    pod = space.wait(
        "pods", "one", lambda pod: status_of(pod).get("restartCount", 0) == 1 and "running" in state(pod)
    )
    space.wait_output("one", "after a first")
    assert status_of(pod)["lastState"]["terminated"]["exitCode"] == 1
    assert pod["status"]["phase"] == "Running"
    answer = space.cluster.call("GET", space.path("pods", "one", "log"), previous="true")
    # A node may have removed the container that failed.
    kept = (answer.status_code, answer.text) == (200, "a first\n")
    assert kept or "previous terminated container" in answer.text


def test_a_container_that_always_runs_is_restarted_after_success(space: Space) -> None:
    """Pod Lifecycle, Container restart policy, Always: after any termination."""
    space.run("one", "pass", restartPolicy="Always")
    pod = space.wait("pods", "one", lambda pod: status_of(pod).get("restartCount", 0) >= 1)
    assert status_of(pod)["lastState"]["terminated"]["exitCode"] == 0


def test_restarts_back_off(space: Space) -> None:
    """Pod Lifecycle, How Pods handle problems with containers: CrashLoopBackOff."""
    space.run("one", "raise SystemExit(1)", restartPolicy="Always")

    def waits(pod: Object) -> bool:
        return bool(state(pod).get("waiting", {}).get("reason") == "CrashLoopBackOff")

    assert "back-off" in state(space.wait("pods", "one", waits))["waiting"]["message"]


def test_a_deadline_ends_a_pod(space: Space) -> None:
    """PodSpec, activeDeadlineSeconds: the pod is failed and its containers killed."""
    space.run("one", SLEEP, activeDeadlineSeconds=2)
    pod = space.finished("one")
    assert (pod["status"]["phase"], pod["status"]["reason"]) == ("Failed", "DeadlineExceeded")


def test_an_image_that_cannot_be_had_waits(space: Space) -> None:
    """Images, ImagePullBackOff, and imagePullPolicy Never."""
    missing = {"image": "example.invalid/none:1", "imagePullPolicy": "Never"}
    space.run("one", container=missing)
    pod = space.wait(
        "pods", "one", lambda pod: "waiting" in state(pod) and state(pod)["waiting"].get("message")
    )
    assert state(pod)["waiting"]["reason"] == "ErrImageNeverPull"
    assert pod["status"]["phase"] == "Pending"


def test_a_program_that_is_not_there_cannot_start(space: Space) -> None:
    """Pod Lifecycle, Container states, Terminated: it ran, or failed for some reason."""
    space.run("one", container={"command": ["/no/such/program"]})
    pod = space.finished("one")
    assert pod["status"]["phase"] == "Failed"
    assert state(pod)["terminated"]["reason"] in ("StartError", "ContainerCannotRun")
    assert state(pod)["terminated"]["exitCode"] in (127, 128)


def test_variables_have_values_and_refer_to_earlier_ones(space: Space) -> None:
    """Define Dependent Environment Variables: $(NAME), and $$(NAME) for the text."""
    env = [
        {"name": "A", "value": "a"},
        {"name": "B", "value": "$(A)b"},
        {"name": "C", "value": "$$(A)"},
        {"name": "D", "value": "$(NONE)"},
    ]
    code = "import os; print(*(os.environ[name] for name in 'ABCD'))"
    space.run("one", code, container={"env": env})
    space.finished("one")
    assert space.output("one") == "a ab $(A) $(NONE)\n"


def test_arguments_refer_to_variables(space: Space) -> None:
    """Define a Command and Arguments, Use environment variables to define arguments: $(NAME)."""
    more = {"env": [{"name": "A", "value": "a"}], "args": ["$(A)", "$(NONE)"]}
    space.run("one", "import sys; print(*sys.argv[1:])", container=more)
    space.finished("one")
    assert space.output("one") == "a $(NONE)\n"


def test_variables_from_fields_of_the_pod(space: Space) -> None:
    """Downward API, Information available via fieldRef."""
    paths = {
        "NAME": "metadata.name",
        "SPACE": "metadata.namespace",
        "LABEL": "metadata.labels['colour']",
        "NODE": "spec.nodeName",
        "IP": "status.podIP",
        "UID": "metadata.uid",
    }
    env = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in paths.items()]
    code = f"import os; print(*(os.environ[name] for name in {list(paths)!r}))"
    spec = space.pod_spec(code, container={"env": env})
    made = space.create("pods", {"metadata": {"name": "one", "labels": {"colour": "red"}}, "spec": spec})
    pod = space.finished("one")
    expected = ["one", space.name, "red", pod["spec"]["nodeName"], pod["status"]["podIP"]]
    assert space.output("one").split() == [*expected, made["metadata"]["uid"]]


def test_variables_from_a_config_map_and_a_secret(space: Space) -> None:
    """ConfigMaps and Secrets, Using them as environment variables."""
    space.create("configmaps", config_map("settings", {"a": "1"}))
    space.create("secrets", {"metadata": {"name": "keys"}, "stringData": {"b": "2"}})
    env = [
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "a"}}},
        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "b"}}},
        {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "c", "optional": True}}},
    ]
    code = "import os; print(os.environ['A'], os.environ['B'], os.environ.get('C'))"
    space.run("one", code, container={"env": env})
    space.finished("one")
    assert space.output("one") == "1 2 None\n"


def test_all_variables_of_a_config_map_and_a_secret(space: Space) -> None:
    """Configure a Pod to Use a ConfigMap, all key-value pairs: envFrom, with a prefix."""
    space.create("configmaps", config_map("settings", {"A": "1", "B": "2"}))
    encoded = base64.b64encode(b"3").decode()
    space.create("secrets", {"metadata": {"name": "keys"}, "data": {"C": encoded}})
    more = {
        "envFrom": [
            {"configMapRef": {"name": "settings"}, "prefix": "P_"},
            {"secretRef": {"name": "keys"}},
        ],
        "env": [{"name": "P_B", "value": "own"}],
    }
    code = "import os; print(os.environ['P_A'], os.environ['P_B'], os.environ['C'])"
    space.run("one", code, container=more)
    space.finished("one")
    assert space.output("one") == "1 own 3\n"


def test_a_container_waits_for_its_config_map(space: Space) -> None:
    """Configure a Pod to Use a ConfigMap, Restrictions: it must exist unless it is optional."""
    env = [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "a"}}}]
    space.run("one", "import os; print(os.environ['A'])", container={"env": env})
    reason = "CreateContainerConfigError"
    space.wait("pods", "one", lambda pod: state(pod).get("waiting", {}).get("reason") == reason)
    space.create("configmaps", config_map("settings", {"a": "late"}))
    assert space.finished("one")["status"]["phase"] == "Succeeded"
    assert space.output("one") == "late\n"


def test_a_deleted_pod_is_asked_to_end(space: Space) -> None:
    """Pod Lifecycle, Termination of Pods: SIGTERM, the grace period, then it is gone."""
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "print('ready')\n"
        "time.sleep(600)"
    )
    # Longer than anybody waits here: only who is asked ends in time.
    grace = 2 * WAIT_SECONDS
    space.run("one", code, terminationGracePeriodSeconds=grace)
    try:
        space.wait("pods", "one", running)
        space.wait_output("one", "ready")
        deleted = space.delete("pods", "one")
        assert deleted["metadata"]["deletionTimestamp"]
        assert deleted["metadata"]["deletionGracePeriodSeconds"] == grace
        assert space.ends_of("one")["main"]["exitCode"] == 0
    finally:
        space.try_delete("pods", "one", {"gracePeriodSeconds": 0})


def test_a_pod_that_does_not_end_is_killed_after_its_grace_period(space: Space) -> None:
    """Pod Lifecycle, Pod termination flow: SIGKILL when the grace period expires."""
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    space.run("one", code, terminationGracePeriodSeconds=1)
    space.wait("pods", "one", running)
    space.delete("pods", "one")
    assert space.ends_of("one")["main"]["exitCode"] == 137


def test_a_pod_is_deleted_by_force(space: Space) -> None:
    """Pod Lifecycle, Forced Pod termination: a grace period of 0 removes it from the API at once."""
    space.run("one", SLEEP, terminationGracePeriodSeconds=60)
    space.wait("pods", "one", running)
    space.delete("pods", "one", {"gracePeriodSeconds": 0})
    refusal(space.try_get("pods", "one"), 404, "NotFound")


def test_a_pod_is_told_about_by_events(space: Space) -> None:
    """Debug Running Pods, Using kubectl describe: Scheduled and Started."""
    space.run("one", "pass")
    space.finished("one")
    assert space.event("Scheduled", "one")["type"] == "Normal"
    event = space.event("Started", "one")
    assert event["involvedObject"]["kind"] == "Pod"
    assert event["involvedObject"]["fieldPath"] == "spec.containers{main}"


def test_a_readiness_probe_decides_who_is_ready(space: Space) -> None:
    """Configure Probes, readiness probes: not ready while it fails; never restarted for it."""
    probe = {"exec": {"command": FAILS}, "periodSeconds": 1}
    space.run("one", SLEEP, container={"readinessProbe": probe})
    assert space.event("Unhealthy", "one")["message"].startswith("Readiness probe failed")
    pod = space.get("pods", "one")
    assert (pod["status"]["phase"], conditions(pod)["Ready"]) == ("Running", "False")
    assert condition(pod, "Ready")["reason"] == "ContainersNotReady"
    assert status_of(pod)["restartCount"] == 0


def test_a_readiness_probe_that_succeeds_makes_ready(space: Space) -> None:
    """Configure Probes, readiness probes: an exec probe succeeds with exit code 0."""
    probe = {"exec": {"command": PASSES}, "periodSeconds": 1}
    space.run("one", SLEEP, container={"readinessProbe": probe})
    space.wait("pods", "one", lambda pod: conditions(pod).get("Ready") == "True")


def test_a_liveness_probe_that_fails_restarts_the_container(space: Space) -> None:
    """Configure Probes, liveness probes: killed after failureThreshold failures, then restarted."""
    probe = {"exec": {"command": FAILS}, "periodSeconds": 1, "failureThreshold": 1}
    space.run("one", SLEEP, container={"livenessProbe": probe}, restartPolicy="Always")
    pod = space.wait("pods", "one", lambda pod: status_of(pod).get("restartCount", 0) >= 1)
    assert status_of(pod)["lastState"]["terminated"]["exitCode"] == 137
    assert space.event("Killing", "one", saying="failed liveness probe")


def test_an_http_probe_asks_the_pod(space: Space) -> None:
    """Configure Probes, HTTP probes: any code from 200 to 399 is a success."""
    server = (
        "import os\n"
        "from http.server import BaseHTTPRequestHandler, HTTPServer\n"
        "class Answer(BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(204 if self.path == '/good' else 500)\n"
        "        self.end_headers()\n"
        "HTTPServer((os.environ['IP'], 8080), Answer).serve_forever()\n"
    )
    for name, path in (("good", "/good"), ("bad", "/bad")):
        probe = {"httpGet": {"path": path, "port": 8080}, "periodSeconds": 1}
        env = [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
        space.run(name, server, container={"readinessProbe": probe, "env": env})
    space.wait("pods", "good", lambda pod: conditions(pod).get("Ready") == "True")
    with space.watch("events", fieldSelector="involvedObject.name=bad,reason=Unhealthy") as events:
        assert any("statuscode: 500" in event["object"]["message"] for event in events)
    assert conditions(space.get("pods", "bad"))["Ready"] == "False"
