"""kubectl as it is installed, for tests: run it in a namespace, or read what it prints while it runs."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

    from nighttrain.providers.local.cluster.server import EmbeddedCluster

PROGRAM = shutil.which("kubectl")
IMAGE = "localhost/python:3.11"

JOB = """
apiVersion: batch/v1
kind: Job
metadata: {name: NAME, labels: {colour: red}}
spec:
  template:
    spec:
      restartPolicy: Never
      containers:
        - {name: main, image: localhost/python, command: [python3, -S, -u, -c, CODE]}
"""
DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME}
spec:
  replicas: 1
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - {name: main, image: localhost/python, command: [python3, -S, -c, "import time; time.sleep(600)"]}
"""


class Kubectl:
    """kubectl in a namespace of the test's own."""

    def __init__(self, cluster: EmbeddedCluster, cache: Path, namespace: str) -> None:
        self._options = ["--kubeconfig", str(cluster.kubeconfig), "--cache-dir", str(cache), "-n", namespace]

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        assert PROGRAM is not None
        command = [PROGRAM, *self._options, *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, f"{arguments}: {done.stderr}{done.stdout}"
        return done.stdout

    def refused(self, *arguments: str) -> str:
        """What it says about a command that must fail."""
        done = self.run(*arguments)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def job(self, name: str, code: str = "print('hello')") -> None:
        self("apply", "-f", "-", stdin=JOB.replace("NAME", name).replace("CODE", json.dumps(code)))

    def finish(self, name: str) -> None:
        self("wait", "--for=condition=complete", f"job/{name}", "--timeout=30s")

    def deployment(self, name: str) -> None:
        self("apply", "-f", "-", stdin=DEPLOYMENT.replace("NAME", name))
        self("rollout", "status", f"deployment/{name}", "--timeout=30s")

    def pod(self, name: str, **spec: object) -> None:
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        self("create", "-f", "-", stdin=json.dumps(manifest))

    @contextlib.contextmanager
    def reading(self, *arguments: str) -> Iterator[IO[str]]:
        """What a command prints that runs on, such as ``get -w``; it is killed at the end."""
        assert PROGRAM is not None
        with subprocess.Popen(
            [PROGRAM, *self._options, *arguments], stdout=subprocess.PIPE, text=True
        ) as run:
            try:
                assert run.stdout is not None
                yield run.stdout
            finally:
                run.kill()


def container(name: str, code: str, **more: object) -> dict[str, object]:
    return {"name": name, "image": IMAGE, "command": ["python3", "-S", "-u", "-c", code], **more}
