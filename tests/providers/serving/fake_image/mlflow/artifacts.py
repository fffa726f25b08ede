"""Downloads from a folder: FAKE_STORE/<name>/<version>."""

import os
import shutil
from pathlib import Path


def download_artifacts(*, artifact_uri: str, dst_path: str) -> str:
    name, version = artifact_uri.removeprefix("models:/").split("/")
    source = Path(os.environ["FAKE_STORE"], name, version)
    if not source.is_dir():
        raise LookupError(f"no version {version} of {name}")
    target = Path(dst_path, "model")
    shutil.copytree(source, target)
    (target / "registered_model_meta").write_text(f"model_name: {name}\n")
    return str(target)
