"""Plans: every boundary of every recorded flow, a sample of them in which every fault strikes every class of
call, and random ones.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from helpers.faulty_flows.call_faults import TASK, Fault, class_of, kinds_for
from helpers.faulty_flows.flow import PROCESSES, REAPER, ZOMBIE, Flow, Plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SHAPES = {
    "train": Plan(),
    "train in the worker": Plan(deferrable=False),
    "train, failing once": Plan(codes=(3, 0)),
    "train, failing for good": Plan(codes=(3, 3)),
    "train, cleared": Plan(clears=1),
    "train, evicted": Plan(evicted=True),
    "train, evicted in the worker": Plan(evicted=True, deferrable=False),
    "train, beside a zombie": Plan(zombie=True),
    "train, failing beside a zombie": Plan(zombie=True, codes=(3, 0), deferrable=False),
    "train, evicted beside a zombie": Plan(zombie=True, evicted=True, deferrable=False),
    "train, marked while deferred": Plan(cancel="marked"),
    "train, marked in the worker": Plan(cancel="marked", deferrable=False),
    "train, timed out while deferred": Plan(cancel="timed out"),
    "train, timed out in the worker": Plan(cancel="timed out", deferrable=False),
    "train, last try": Plan(last=True),
    "train, last try in the worker": Plan(last=True, deferrable=False),
    "train, dying on the last try": Plan(last=True, unsettled=True),
    "judge": Plan(flow="judge"),
    "judge, worse": Plan(flow="judge", worse=True, deferrable=False),
    "roll out": Plan(flow="rollout"),
    "roll out in the worker": Plan(flow="rollout", deferrable=False),
    "roll out, marked while deferred": Plan(flow="rollout", cancel="marked"),
    "roll out, marked in the worker": Plan(flow="rollout", cancel="marked", deferrable=False),
    "roll out, timed out while deferred": Plan(flow="rollout", cancel="timed out"),
    "roll out, timed out in the worker": Plan(flow="rollout", cancel="timed out", deferrable=False),
}
"""What runs, without anything going wrong."""

# A poll or a watch that comes again and again is the same boundary. A write is another one each time.
SAME_READ = 4

Call = tuple[str, str]
"""The process, and the label."""


def calls_of(flows: Sequence[Flow]) -> dict[Call, int]:
    """How often each call was made, in every one of some flows of one shape."""
    counts = [
        Counter((process, label) for process in PROCESSES for label in flow.schedules[process].calls)
        for flow in flows
    ]
    common = set.intersection(*map(set, counts))
    return {call: min(count[call] for count in counts) for call in sorted(common)}


def boundaries(shape: Plan, calls: Mapping[Call, int]) -> list[Plan]:
    """One plan for each call and each fault that it can meet."""
    return [
        replace(shape, faults=(Fault(label, nth, kind, process=process),))
        for (process, label), count in calls.items()
        for nth in range(1, (count if class_of(label).endswith("write") else min(count, SAME_READ)) + 1)
        for kind in kinds_for(label)
    ]


def every_boundary(recorded: Mapping[str, Mapping[Call, int]]) -> list[tuple[str, Plan]]:
    """All of them, with the names of their flows."""
    return [(name, plan) for name, calls in recorded.items() for plan in boundaries(SHAPES[name], calls)]


Goal = tuple[str, ...]
"""A kind of fault at a class of call, a class of call of a process, a flow, or a call of the servers."""

TRAINS = {
    *("k8s read", "k8s write", "k8s watch", "k8s log"),
    *("mlflow read", "mlflow write", "airflow write"),
}
CLASSES = {
    TASK: {*TRAINS, "airflow read"},
    ZOMBIE: TRAINS,
    REAPER: {"k8s read", "k8s write", "mlflow read", "mlflow write", "airflow write"},
}
"""What each process calls; written out, so that a class that is not recorded any more is missed."""


def goals_of(name: str, struck: Iterable[tuple[Fault, str]]) -> set[Goal]:
    """What the faults that struck a flow have shown."""
    shown: set[Goal] = set()
    for fault, label in struck:
        shown |= {
            ("flow", name),
            ("kind", class_of(label), fault.kind),
            ("process", fault.process, class_of(label)),
        }
        if not label.startswith("airflow"):  # what Airflow stores differs in its name only
            shown.add(("call", label))
    return shown


# Events explain a wait that lasts three seconds, and on a busy machine some do. A recording that has such a
# call by chance says nothing of the next run.
BY_CHANCE: set[Goal] = {("call", "k8s GET events watch")}


def all_goals(recorded: Mapping[str, Mapping[Call, int]]) -> set[Goal]:
    """Every kind at every class, every class of every process, every flow, every call."""
    every = {("process", process, name) for process, names in CLASSES.items() for name in names} | {
        goal
        for name, plan in every_boundary(recorded)
        for goal in goals_of(name, [(fault, fault.label) for fault in plan.faults])
    }
    return every - BY_CHANCE


def sample(
    recorded: Mapping[str, Mapping[Call, int]], missing: set[Goal], tried: Sequence[Plan] = ()
) -> list[tuple[str, Plan]]:
    """Few boundaries that show what is missing.

    :param tried: not these, which met nothing
    """
    candidates = [(name, plan) for name, plan in every_boundary(recorded) if plan not in tried]
    random.Random(0).shuffle(candidates)
    shown = [goals_of(name, [(fault, fault.label) for fault in plan.faults]) for name, plan in candidates]
    left = missing & set().union(*shown)
    chosen = []
    while left:
        best = max(range(len(shown)), key=lambda place: len(shown[place] & left))
        left -= shown[best]
        chosen.append(candidates[best])
    return chosen


def random_plan(seed: int, recorded: Mapping[str, Mapping[Call, int]]) -> Plan:
    """The plan of a seed: some shape, with up to four faults at its calls. A new call makes another plan."""
    dice = random.Random(seed)
    name = dice.choice(sorted(recorded))
    calls = recorded[name]
    faults = []
    for _ in range(dice.randint(1, 4)):
        process, label = dice.choice(sorted(calls))
        kind = dice.choice(kinds_for(label))
        # A dozen in a row is more than a client tries again: the task's try fails.
        times = 1 if kind.startswith("crash") else dice.choice((1, 1, 12))
        nth = dice.randint(1, calls[process, label])
        faults.append(Fault(label, nth, kind, times, process))
    return replace(SHAPES[name], faults=tuple(faults))
