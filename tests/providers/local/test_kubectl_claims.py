"""kubectl on PersistentVolumeClaims."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.kubectl

PROGRAM = shutil.which("kubectl")
MANIFEST = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce, ReadOnlyMany]
  resources: {requests: {storage: 2Gi}}
"""


@pytest.mark.skipif(PROGRAM is None, reason="kubectl is not installed")
def test_claims_are_applied_shown_and_deleted(tmp_path: Path) -> None:
    with EmbeddedCluster(images={"localhost/python": sys.executable}) as cluster:

        def kubectl(*arguments: str, stdin: str = "") -> str:
            options = ["--kubeconfig", str(cluster.kubeconfig), "--cache-dir", str(tmp_path)]
            done = subprocess.run(
                [str(PROGRAM), *options, *arguments],
                input=stdin,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        kubectl("apply", "-f", "-", stdin=MANIFEST)
        kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/data", "--timeout=30s")
        assert kubectl("get", "pvc").splitlines()[1].split()[0] == "data"
        assert "Bound" in kubectl("describe", "pvc", "data")
        assert kubectl("delete", "pvc", "data").startswith('persistentvolumeclaim "data" deleted')
