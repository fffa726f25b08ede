"""Elect one of several runs by what MLflow gives out only once: the name of an experiment.

Runs, tags and aliases of MLflow have no compare-and-swap. An experiment's name is unique, also while the
experiment is in the trash, and its tags are written with it: so whoever makes the experiment that an election
is named after has put its own candidate there, and everybody else reads whose it is. Nobody waits for
anybody, and a crash leaves the election undecided or decided, never half of it. The experiment itself holds
nothing and goes into the trash at once, where it is out of people's sight; ``mlflow gc`` may remove it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING

from nighttrain.providers.errors import TrackingError, TrackingNotFoundError, TrackingRequestError, clip
from nighttrain.providers.tracking.tags import PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from nighttrain.providers.tracking.client import MLflowClient

ELECTED_TAG = f"{PREFIX}elected_run"
_ABOUT_LENGTH = 500
"""Whose election it is, for a person who looks into the trash: a glance, not the whole of a long run id."""


class Election:
    """One election; everybody who names the same things takes part in the same one.

    :param about: what it is about, in words and ids that tell it from every other
    """

    def __init__(self, client: MLflowClient, *about: str) -> None:
        self._client = client
        self._about = about
        digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
        self._name = f"nighttrain election {digest}"

    async def elected(self) -> str | None:
        """The id of the run that was elected; ``None`` while nobody is.

        :raises TrackingError: MLflow does not answer, or refuses
        """
        try:
            answer = await self._client.get("experiments/get-by-name", {"experiment_name": self._name})
        except TrackingNotFoundError:
            return None
        experiment = answer["experiment"]
        if experiment.get("lifecycle_stage") == "active":
            await self._hide(experiment)  # its maker died before it could
        tags = {tag["key"]: tag.get("value", "") for tag in experiment.get("tags", ())}
        return tags.get(ELECTED_TAG) or None

    async def stand(self, run_id: str) -> str:
        """Put up a run; the id of the one that is elected, now and for everybody.

        :raises TrackingError: MLflow does not answer, or refuses to make experiments
        """
        note = f"nighttrain elected one run among several here. It holds nothing. ({'; '.join(self._about)})"
        tags = {ELECTED_TAG: run_id, "mlflow.note.content": clip(note, _ABOUT_LENGTH)}
        body = {
            "name": self._name,
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        try:
            made = await self._client.post("experiments/create", body)
        except TrackingRequestError as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return await self.elected() or run_id
        await self._hide(made)
        return run_id

    async def _hide(self, experiment: Mapping[str, Any]) -> None:
        # Only a matter of sight: somebody else did it, or whoever reads it next does.
        with contextlib.suppress(TrackingError):
            await self._client.post("experiments/delete", {"experiment_id": experiment["experiment_id"]})
