"""Jobs: pods until enough of them have succeeded, or too many have failed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import datetime, timedelta

from nighttrain.providers.local.cluster.controllers.pace import BackOff, Bucket, Pace
from nighttrain.providers.local.cluster.controllers.reconcile import (
    PODS_AT_A_TIME,
    Controller,
    ReconcileLoop,
    controller_of,
    new_pod,
)
from nighttrain.providers.local.cluster.kinds import job_indexes, job_policy
from nighttrain.providers.local.cluster.kinds.pods import (
    ended_at,
    is_active,
    is_ready,
    is_terminating,
    moment,
    phase,
)
from nighttrain.providers.local.cluster.store.errors import ApiError
from nighttrain.providers.local.cluster.store.events import EventRecorder
from nighttrain.providers.local.cluster.store.lifecycle import Propagation
from nighttrain.providers.local.cluster.store.resources import JOBS, PODS, ResourceType
from nighttrain.providers.local.cluster.store.store import EventType, Object, copy_object, timestamp

FINALIZER = "batch.kubernetes.io/job-tracking"

# What ``managedBy`` says of a Job that is this controller's.
_NAME = "kubernetes.io/job-controller"

_REACHED = ("CompletionsReached", "Reached expected number of succeeded pods")
_LIMIT = ("BackoffLimitExceeded", "Job has reached the specified backoff limit")
_LATE = ("DeadlineExceeded", "Job was active longer than specified deadline")

# What the Job controller does when the spec does not say.
_DEFAULT_BACKOFF_LIMIT = 6

Verdict = tuple[str, str]


@dataclass
class Failures:
    """Failures since the last success, for the pause before the next pod."""

    count: int = 0
    last: datetime | None = None


class JobController(Controller):
    """Runs Jobs.

    :param back_off: the pause after failures: 10 s doubled up to 10 min on a real cluster
    :param pace: how fast it works; None: at once
    """

    def __init__(self, loop: ReconcileLoop, back_off: BackOff, pace: Pace | None = None) -> None:
        super().__init__(loop)
        self.bucket = None if pace is None else Bucket(pace)
        self._gather = 0.0 if pace is None else pace.gather_seconds
        self._generations: dict[str, int] = {}
        self._back_off = back_off
        self._recorder = EventRecorder(loop.store, "job-controller")
        self._failures: dict[str, Failures] = {}

    def changed(self, type_: EventType, resource: ResourceType, obj: Object) -> None:
        metadata = obj["metadata"]
        if resource is JOBS:
            told = self._generations.get(metadata["uid"]) == metadata["generation"]
            self._generations[metadata["uid"]] = metadata["generation"]
            # A new Job and another spec are looked at once; other news, as those of pods, come in swarms.
            self.enqueue_after(metadata["namespace"], metadata["name"], self._gather if told else 0.0)
            if type_ is EventType.DELETED:
                self._failures.pop(metadata["uid"], None)
                self._generations.pop(metadata["uid"], None)
                for pod in self.owned(obj, PODS):
                    self._release(pod)
        elif resource is PODS:
            owner = controller_of(obj)
            if owner is not None and owner["kind"] == "Job":
                self.enqueue_after(metadata["namespace"], owner["name"], self._gather)
                if type_ is not EventType.DELETED and FINALIZER in (metadata.get("finalizers") or []):
                    job = self.store.find(JOBS, metadata["namespace"], owner["name"])
                    if job is None or job["metadata"]["uid"] != owner["uid"]:
                        self._release(obj)

    def reconcile(self, namespace: str, name: str) -> None:
        job = self.store.find(JOBS, namespace, name)
        if job is None:
            return
        pods = self.owned(job, PODS)
        # What is found out goes into a draft: a Job's status is written in two steps, not field by field.
        job = {**job, "status": copy_object(job.get("status") or {})}
        if job["spec"].get("managedBy", _NAME) != _NAME:
            # Another controller's Job; only the time after its end is kept here.
            if (finished := _finished_at(job)) is not None:
                self._expire(job, finished)
            return
        if "deletionTimestamp" in job["metadata"]:
            for pod in pods:
                self._release(pod)
            self._draft_counts(job, pods)
            self._write(job)
        elif (finished := _finished_at(job)) is not None:
            self._clean_up(job, pods, finished)
        else:
            self._sync(job, pods)

    # A Job that is under way

    def _sync(self, job: Object, pods: list[Object]) -> None:
        suspended = bool(job["spec"].get("suspend"))
        turned = self._begin(job, pods)
        verdict = self._verdict(job, pods)
        if verdict is not None:
            self._draft_condition(job, *verdict)
            self._delete_active(job, pods)
        self._count(job, pods, suspended=suspended)
        try:
            if verdict is None and self._verdict(job, self.owned(job, PODS)) is not None:
                self.enqueue(job["metadata"]["namespace"], job["metadata"]["name"])
            elif verdict is None and not suspended:
                self._manage(job)
        finally:
            # Also when a pod was refused, by a quota for example.
            self._draft_counts(job, self.owned(job, PODS))
            if verdict is not None:
                self._finish(job, verdict)
            self._write(job)
        if turned is not None:
            self._recorder.normal(job, *turned)

    def _begin(self, job: Object, pods: list[Object]) -> Verdict | None:
        """Start time, suspension and resumption; what to tell of them."""
        status = job["status"]
        suspended = bool(job["spec"].get("suspend"))
        was = (_condition(job, "Suspended") or {}).get("status") == "True"
        if suspended and not was:
            self._draft_condition(job, "Suspended", ("JobSuspended", "Job suspended"))
            status.pop("startTime", None)
            self._delete_active(job, pods)
            return "Suspended", "Job suspended"
        if was and not suspended:
            self._draft_condition(job, "Suspended", ("JobResumed", "Job resumed"), status="False")
            status["startTime"] = self._now()
            return "Resumed", "Job resumed"
        if not suspended and not status.get("startTime"):
            status["startTime"] = self._now()
        return None

    def _verdict(self, job: Object, pods: list[Object]) -> tuple[str, Verdict] | None:
        """True if the Job is to end: the condition that says so, with reason and message."""
        for kind in ("FailureTarget", "SuccessCriteriaMet"):
            known = _condition(job, kind)
            if known is not None and known["status"] == "True":
                return kind, (known["reason"], known["message"])
        spec, status = job["spec"], job.get("status") or {}
        if spec.get("suspend"):
            return None
        failed_by = job_policy.fail_job(job, [pod for pod in pods if _counts_as_failed(job, pod)])
        if failed_by is not None:
            return "FailureTarget", ("PodFailurePolicy", failed_by)
        succeeded, failed = self._tally(job, pods)
        if self._over_limit(spec, failed, pods):
            return "FailureTarget", _LIMIT
        if self._over_deadline(job):
            return "FailureTarget", _LATE
        if spec.get("completionMode") == "Indexed":
            done = [index for index in job_indexes.completed(job, pods) if index < spec["completions"]]
            if len(done) >= spec["completions"]:
                return "SuccessCriteriaMet", _REACHED
        elif spec.get("completions") is not None:
            if succeeded >= spec["completions"]:
                return "SuccessCriteriaMet", _REACHED
        elif (succeeded or status.get("succeeded")) and not any(is_active(pod) for pod in pods):
            return "SuccessCriteriaMet", _REACHED
        return None

    def _tally(self, job: Object, pods: list[Object]) -> tuple[int, int]:
        """Succeeded and failed pods: those counted already, and those about to be."""
        status = job.get("status") or {}
        tracked = [pod for pod in pods if _is_tracked(pod)]
        succeeded = sum(phase(pod) == "Succeeded" and not _counts_as_failed(job, pod) for pod in tracked)
        failed = sum(_counts_as_failed(job, pod) and not job_policy.ignored(job, pod) for pod in tracked)
        return status.get("succeeded", 0) + succeeded, status.get("failed", 0) + failed

    def _over_limit(self, spec: Object, failed: int, pods: list[Object]) -> bool:
        limit = spec.get("backoffLimit")
        if limit is None:
            limit = _DEFAULT_BACKOFF_LIMIT
        if failed > limit:
            return True
        if spec["template"]["spec"].get("restartPolicy") != "OnFailure":
            return False
        restarts = sum(
            container.get("restartCount", 0)
            for pod in pods
            if is_active(pod)
            for container in (pod.get("status") or {}).get("containerStatuses") or []
        )
        return bool(restarts > 0 if limit == 0 else restarts >= limit)

    def _over_deadline(self, job: Object) -> bool:
        seconds = job["spec"].get("activeDeadlineSeconds")
        start = (job.get("status") or {}).get("startTime")
        if seconds is None or not start:
            return False
        left = (moment(start) + timedelta(seconds=seconds) - self.store.clock()).total_seconds()
        if left > 0:
            self.enqueue_after(job["metadata"]["namespace"], job["metadata"]["name"], left)
        return left <= 0

    def _count(self, job: Object, pods: list[Object], *, suspended: bool) -> None:
        """Count finished pods once each: first their names, then, their finalizers gone, their number.

        An index that is done needs no name: it is in the list of the completed ones.
        """
        succeeded, failed = self._newly_finished(job, pods, suspended=suspended)
        if not succeeded and not failed:
            return
        for pod in failed:
            self._remember_failure(job, pod)
        if succeeded:
            self._failures.pop(job["metadata"]["uid"], None)
        status = job["status"]
        numbers = {"succeeded": len(succeeded), "failed": len(failed)}
        if job["spec"].get("completionMode") == "Indexed":
            _set(status, "succeeded", status.get("succeeded", 0) + numbers.pop("succeeded"))
            succeeded_uids = []
            if done := job_indexes.completed(job, pods):
                status["completedIndexes"] = job_indexes.ranges(done)
        else:
            succeeded_uids = [pod["metadata"]["uid"] for pod in succeeded]
        uids = {"succeeded": succeeded_uids, "failed": [pod["metadata"]["uid"] for pod in failed]}
        self._draft_counts(job, self.owned(job, PODS), {key: found for key, found in uids.items() if found})
        self._write(job)
        for pod in [*succeeded, *failed]:
            self._release(pod)
        status["uncountedTerminatedPods"] = {}
        for key, number in numbers.items():
            _set(status, key, status.get(key, 0) + number)

    def _newly_finished(
        self, job: Object, pods: list[Object], *, suspended: bool
    ) -> tuple[list[Object], list[Object]]:
        """Pods to be counted; those that count for nothing are let go."""
        succeeded, failed = [], []
        for pod in filter(_is_tracked, pods):
            if suspended and "deletionTimestamp" in pod["metadata"] and phase(pod) != "Failed":
                self._release(pod)  # suspension is nobody's failure
            elif _counts_as_failed(job, pod) and job_policy.ignored(job, pod):
                self._remember_failure(job, pod)
                self._release(pod)
            elif _counts_as_failed(job, pod):
                failed.append(pod)
            elif phase(pod) == "Succeeded":
                succeeded.append(pod)
        return succeeded, failed

    def _remember_failure(self, job: Object, pod: Object) -> None:
        known = self._failures.setdefault(job["metadata"]["uid"], Failures())
        known.count += 1
        when = ended_at(pod) or self.store.clock()
        known.last = max(known.last, when) if known.last else when

    # Pods

    def _manage(self, job: Object) -> None:
        """Create the pods that are missing, or delete those that are too many."""
        spec, metadata = job["spec"], job["metadata"]
        pods = self.owned(job, PODS)
        active = [pod for pod in pods if is_active(pod)]
        parallelism = spec.get("parallelism", 1)
        if spec.get("completionMode") == "Indexed":
            self._manage_indexes(job, pods, min(parallelism - len(active), PODS_AT_A_TIME))
            return
        status = job.get("status") or {}
        if spec.get("completions") is None:
            wanted = len(active) if status.get("succeeded") else parallelism
        else:
            wanted = min(parallelism, spec["completions"] - status.get("succeeded", 0))
        taken = len(active)
        if job_policy.waits_for_terminal(job):
            taken += sum(is_terminating(pod) for pod in pods)
        if len(active) > max(wanted, 0):
            # The youngest go first: they have done the least.
            self._delete(job, active[max(wanted, 0) :])
        elif taken < wanted:
            pause = self._pause(job)
            if pause > 0:
                self.enqueue_after(metadata["namespace"], metadata["name"], pause)
                return
            for _ in range(min(wanted - taken, PODS_AT_A_TIME)):
                self._create(job, None)

    def _manage_indexes(self, job: Object, pods: list[Object], room: int) -> None:
        if room < 0:
            self._delete(job, [pod for pod in pods if is_active(pod)][room:])
            return
        metadata, pause = job["metadata"], self._pause(job)
        if pause > 0:
            self.enqueue_after(metadata["namespace"], metadata["name"], pause)
            return
        blocked = [pod for pod in pods if is_active(pod)]
        if job_policy.waits_for_terminal(job):
            blocked += [pod for pod in pods if is_terminating(pod)]
        for index in itertools.islice(job_indexes.missing(job, pods, blocked), room):
            self._create(job, index)

    def _pause(self, job: Object) -> float:
        """Seconds to wait before the next pod."""
        known = self._failures.get(job["metadata"]["uid"])
        if known is None or not known.count:
            return 0.0
        since = known.last or self.store.clock()
        wait = timedelta(seconds=self._back_off.seconds(known.count - 1))
        return (since + wait - self.store.clock()).total_seconds()

    def _create(self, job: Object, index: int | None) -> None:
        pod, uid, name = new_pod(job), job["metadata"]["uid"], job["metadata"]["name"]
        own = {"controller-uid": uid, "job-name": name}
        own |= {f"batch.kubernetes.io/{key}": value for key, value in own.items()}
        pod["metadata"]["labels"] = {**own, **pod["metadata"]["labels"]}
        more = (job["spec"]["template"].get("metadata") or {}).get("finalizers") or []
        pod["metadata"]["finalizers"] = [FINALIZER, *more]
        if index is not None:
            job_indexes.mark(job, pod, index)
        try:
            created = self.store.create(PODS, pod)
        except ApiError as error:
            self._recorder.warning(job, "FailedCreate", f"Error creating: {error}")
            raise
        self._recorder.normal(job, "SuccessfulCreate", f"Created pod: {created['metadata']['name']}")

    def _delete_active(self, job: Object, pods: list[Object]) -> None:
        self._delete(job, [pod for pod in pods if is_active(pod)])

    def _delete(self, job: Object, pods: list[Object]) -> None:
        for pod in pods:
            metadata = pod["metadata"]
            if "deletionTimestamp" not in metadata:
                self.store.delete(PODS, metadata["namespace"], metadata["name"])
                self._recorder.normal(job, "SuccessfulDelete", f"Deleted pod: {metadata['name']}")

    def _release(self, pod: Object) -> None:
        """Take the finalizer off: the pod's end is counted."""
        metadata = pod["metadata"]

        def drop(new: Object) -> None:
            new["metadata"]["finalizers"] = [
                each for each in new["metadata"].get("finalizers") or [] if each != FINALIZER
            ]

        current = self.store.find(PODS, metadata["namespace"], metadata["name"])
        if current is not None and current["metadata"]["uid"] == metadata["uid"] and _is_tracked(current):
            self.store.mutate(PODS, metadata["namespace"], metadata["name"], drop)

    # The end

    def _finish(self, job: Object, verdict: tuple[str, Verdict]) -> None:
        """The second step: nothing of the Job runs any more."""
        kind, why = verdict
        pods = self.owned(job, PODS)
        if any(is_active(pod) or is_terminating(pod) or _is_tracked(pod) for pod in pods):
            return
        if kind == "SuccessCriteriaMet":
            self._draft_condition(job, "Complete", why)
            job["status"]["completionTime"] = self._now()
            self._recorder.normal(job, "Completed", "Job completed")
        else:
            self._draft_condition(job, "Failed", why)
            self._recorder.warning(job, *why)
        self._failures.pop(job["metadata"]["uid"], None)

    def _clean_up(self, job: Object, pods: list[Object], finished: datetime) -> None:
        for pod in pods:
            self._release(pod)
        self._delete_active(job, pods)
        self._expire(job, finished)

    def _expire(self, job: Object, finished: datetime) -> None:
        seconds = job["spec"].get("ttlSecondsAfterFinished")
        if seconds is None:
            return
        metadata = job["metadata"]
        left = (finished + timedelta(seconds=seconds) - self.store.clock()).total_seconds()
        if left > 0:
            self.enqueue_after(metadata["namespace"], metadata["name"], left)
        else:
            self.store.delete(
                JOBS, metadata["namespace"], metadata["name"], propagation=Propagation.FOREGROUND
            )

    # Status

    def _draft_counts(self, job: Object, pods: list[Object], uncounted: Object | None = None) -> None:
        active = [pod for pod in pods if is_active(pod)]
        status = job["status"]
        _set(status, "active", len(active))
        status["terminating"] = sum(is_terminating(pod) for pod in pods)
        status["uncountedTerminatedPods"] = uncounted or {}
        status["ready"] = sum(is_ready(pod) for pod in active)

    def _draft_condition(self, job: Object, type_: str, why: Verdict, status: str = "True") -> None:
        known = _condition(job, type_)
        if known is not None and (known["status"], known["reason"]) == (status, why[0]):
            return
        now = self._now()
        new = {"type": type_, "status": status, "lastProbeTime": now, "lastTransitionTime": now}
        new |= {"reason": why[0], "message": why[1]}
        conditions = job["status"].get("conditions") or []
        if known is None:
            conditions = [*conditions, new]
        else:
            conditions = [new if each["type"] == type_ else each for each in conditions]
        job["status"]["conditions"] = conditions

    def _write(self, job: Object) -> None:
        """Store the draft, as one change."""
        metadata, status = job["metadata"], job["status"]

        def write(new: Object) -> None:
            new["status"] = copy_object(status)

        self.store.mutate(JOBS, metadata["namespace"], metadata["name"], write)

    def _now(self) -> str:
        return timestamp(self.store.clock())


def _set(status: Object, key: str, number: int) -> None:
    if number:
        status[key] = number
    else:
        status.pop(key, None)


def _is_tracked(pod: Object) -> bool:
    return FINALIZER in (pod["metadata"].get("finalizers") or [])


def _counts_as_failed(job: Object, pod: Object) -> bool:
    """A failed pod, or one on its way out, unless the Job waits for how that ends."""
    if phase(pod) == "Failed":
        return True
    return is_terminating(pod) and not job_policy.waits_for_terminal(job)


def _condition(job: Object, type_: str) -> Object | None:
    conditions = (job.get("status") or {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == type_), None)


def _finished_at(job: Object) -> datetime | None:
    for type_ in ("Complete", "Failed"):
        condition = _condition(job, type_)
        if condition is not None and condition["status"] == "True":
            return moment(condition["lastTransitionTime"])
    return None
