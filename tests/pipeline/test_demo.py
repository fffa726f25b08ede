"""`./run demo` as a user runs it, and what is left of it afterwards: nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from nighttrain.providers.local.cluster.machine.janitor import marked_processes
from nighttrain.providers.local.stack import Stack, StackError, stop_left_running

pytestmark = [pytest.mark.slow, pytest.mark.airflow, pytest.mark.mlflow, pytest.mark.timeout(720)]

COMMAND = [sys.executable, "-m", "nighttrain.providers.local.demo", "--home"]


def processes_below(folder: Path) -> list[str]:
    """The command lines of the processes that work in the folder, or were told of it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes()
            if str(folder).encode() in words:
                found.append(words.split(b"\0")[0].decode(errors="replace"))
        except OSError:
            continue
    return found


# A canary that promotes, and one of a model that learned nothing, which undoes itself.
ROLLOUTS = [
    ("1", "-", "100 %", "promoted"),
    ("2", "1", "50 %, 100 %", "promoted"),
    ("4", "2", "50 %", "undone"),
]


def assert_rollouts(told: str, wanted: list[tuple[str, str, str, str]]) -> None:
    assert "let through" in told.split("The gate says: accepted")[1].split("deployment")[0]
    ends = re.findall(r"│ (\d) +│ (\d|-) +│ ([\d%, ]+?) *│ (\w+) +│", told)
    assert ends == wanted
    assert re.search(rf"rollout v{wanted[-1][0]} +undoing: disagreement: ", told)
    pictures = re.findall(r"picture of version \d .*/artifacts/nighttrain/rollout.svg", told)
    assert len(pictures) == len(wanted)
    # The stage that came back starts a deployment, which finds that its version serves: no circle.
    ends_of_tasks = re.findall(r"deployment +rollout +(success|failed)", told)
    assert ends_of_tasks == [*(["success"] * (len(wanted) - 1)), "failed", "success"]


def verdicts_of(told: str) -> list[tuple[str, ...]]:
    """Night, verdict, version, stage, and whether it serves; each row with the two errors behind."""
    return re.findall(
        r"(2013-09-0\d)[ │]+\w{8}[ │]+([\d.]+)[ │]+([\d.-]+)[ │]+(\w+)[ │]+(\d)[ │]+(\w+)[ │]+(now)?", told
    )


def assert_nothing_is_left(home: Path, told: str) -> None:
    assert len(re.findall(r"^\w\w \d+ +\w{3}-\w{3} ", told, flags=re.MULTILINE)) == 8
    assert not home.exists()
    assert processes_below(home) == []
    for address in re.findall(r"http://127\.0\.0\.1:\d+", told):
        with pytest.raises(httpx.TransportError):
            httpx.get(address, timeout=2)


def test_two_nights_end_with_the_table_and_predictions_and_leave_nothing(tmp_path: Path) -> None:
    home = tmp_path / "demo"
    done = subprocess.run([*COMMAND, str(home), "--short"], capture_output=True, text=True, timeout=700)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = verdicts_of(done.stdout)
    assert [(row[0], *row[3:]) for row in rows] == [
        ("2013-09-04", "accepted", "1", "Production", "now"),
        ("2013-09-07", "accepted", "2", "None", ""),
    ]
    assert_rollouts(done.stdout, [ROLLOUTS[0], ("2", "1", "50 %", "undone")])
    assert_nothing_is_left(home, done.stdout)


@pytest.mark.thorough
def test_demo_ends_with_the_table_and_predictions_and_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / "demo"
    done = subprocess.run([*COMMAND, str(home)], capture_output=True, text=True, timeout=700)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = verdicts_of(done.stdout)
    verdicts = [
        (night, verdict, version, stage, serves) for night, _, _, verdict, version, stage, serves in rows
    ]
    assert verdicts == [
        ("2013-09-04", "accepted", "1", "Archived", ""),
        ("2013-09-05", "accepted", "2", "Production", "now"),
        ("2013-09-06", "rejected", "3", "None", ""),
        ("2013-09-07", "accepted", "4", "None", ""),
    ]
    candidate, champion = (float(rows[2][i]) for i in (1, 2))
    assert candidate > champion  # the reason for the rejection is in the data
    assert_rollouts(done.stdout, ROLLOUTS)
    assert_nothing_is_left(home, done.stdout)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("interruption", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_demo_leaves_no_process(tmp_path: Path, interruption: signal.Signals) -> None:
    home = tmp_path / "demo"
    # What a shell starts in the background ignores SIGINT, and so would the demo.
    heeding = ["env", "--default-signal=INT", *COMMAND, str(home)]
    with subprocess.Popen(heeding, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "MLflow ready" in line:
                break
        assert processes_below(home) != []
        demo.send_signal(interruption)
        demo.stdout.read()
        assert demo.wait(60) == (130 if interruption is signal.SIGINT else -interruption)
    # After SIGKILL the janitors have to notice first.
    for _ in range(100):
        if not processes_below(home):
            break
        subprocess.run(["sleep", "0.1"], check=True)
    assert processes_below(home) == []


def test_demo_refuses_a_folder_that_is_not_its_own_or_is_in_use(tmp_path: Path) -> None:
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "notes.txt").write_text("do not lose this")
    refused = subprocess.run([*COMMAND, str(mine)], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "not a demo's" in refused.stdout
    assert (mine / "notes.txt").read_text() == "do not lose this"
    (mine / "running.json").write_text("{}")
    in_use = subprocess.run([*COMMAND, str(mine)], capture_output=True, text=True, check=False)
    assert in_use.returncode == 2
    assert "./run stop" in in_use.stdout


def test_servers_left_running_are_stopped_by_another_process(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "stack", [tmp_path])
    stack.start_cluster()
    cluster = stack.servers[0].process
    stack.leave_running()
    assert cluster.poll() is None
    assert marked_processes(stack.identifier) != []
    assert stop_left_running(tmp_path / "stack")
    cluster.wait(10)
    assert marked_processes(stack.identifier) == []
    assert not stop_left_running(tmp_path / "stack")


def test_server_that_ends_by_itself_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "stack", [tmp_path])
    try:
        stack.start_cluster()
        os.killpg(stack.servers[0].process.pid, signal.SIGKILL)
        stack.servers[0].process.wait(10)
        with pytest.raises(StackError, match="cluster ended with -9"):
            stack.check_alive()
    finally:
        stack.stop()
