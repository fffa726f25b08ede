"""Memory limits without control groups: a thread that looks, and kills a container that uses too much.

It counts what a container's processes hold for themselves (anonymous and shared memory), not the pages of
files. A control group counts those too, but takes them back before it kills; and it refuses the very page
that is too much, where this can only look again. How soon depends on how much is left. An address space limit
would be exact and useless: numerical libraries reserve far more than they use.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.machine.processes import ContainerProcess

# As fast as a thread can fill fresh memory on today's machines, in bytes a second: nobody gets from his last
# measure to his limit much sooner than the next look.
_FASTEST = 8 * 2**30

# Never more often than this, to cost about a hundredth of a processor; never less often than this, because
# several threads can fill memory together. In seconds.
_SHORTEST, _LONGEST = 0.005, 0.1


class MemoryLimits:
    """Keeps containers below their memory limits. One thread, which exists only while it is needed."""

    def __init__(self) -> None:
        self._watched: list[_Watched] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(self, process: ContainerProcess, limit: int) -> None:
        """SIGKILL the container, and mark it as out of memory, once it uses more than ``limit`` bytes."""
        with self._changed:
            self._watched.append(_Watched(process, limit))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="memory-limits", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._watched = [each for each in self._watched if each.process.running]
                while not self._watched and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                watched = list(self._watched)
            pause = min(each.look() for each in watched)
            with self._changed:
                if not self._closed:
                    self._changed.wait(pause)


class _Watched:
    """One container: its processes as far as they were ever seen, also those that lost their parent."""

    def __init__(self, process: ContainerProcess, limit: int) -> None:
        self.process = process
        self._limit = limit
        # With the time each began: numbers are used again.
        self._members: dict[int, str] = {}
        self._add(process.pid)

    def look(self) -> float:
        """Measure, kill if it is too much; the seconds until the next look."""
        self._follow()
        left = self._limit - self._used()
        if left < 0:
            self._kill()
            return _SHORTEST
        return min(_LONGEST, max(_SHORTEST, left / _FASTEST))

    def _add(self, pid: int) -> None:
        began = _began(pid)
        if began is not None:
            self._members[pid] = began

    def _follow(self) -> None:
        waiting = [pid for pid, began in self._members.items() if _began(pid) == began]
        self._members = {pid: self._members[pid] for pid in waiting}
        while waiting:
            for child in _children(waiting.pop()):
                if child not in self._members:
                    self._add(child)
                    waiting.append(child)

    def _used(self) -> int:
        used = sum(_held(pid) for pid in self._members)
        if used > self._limit and len(self._members) > 1:
            # Processes that were forked share pages until one of them writes: count each page once. Slower.
            used = sum(_share(pid) for pid in self._members)
        return used

    def _kill(self) -> None:
        self.process.out_of_memory = True
        for pid, began in self._members.items():
            if _began(pid) == began:
                try:
                    os.kill(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    continue


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _began(pid: int) -> str | None:
    """The start of a process in the kernel's ticks; None if it is gone."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else None


def _children(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    found = []
    for thread in threads:
        found += [int(text) for text in _read(f"/proc/{pid}/task/{thread}/children").split()]
    return found


def _sum_kilobytes(text: str, names: tuple[str, ...]) -> int:
    return 1024 * sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(names))


def _held(pid: int) -> int:
    return _sum_kilobytes(_read(f"/proc/{pid}/status"), ("RssAnon:", "RssShmem:"))


def _share(pid: int) -> int:
    text = _read(f"/proc/{pid}/smaps_rollup")
    return _sum_kilobytes(text, ("Pss_Anon:", "Pss_Shmem:")) if text else _held(pid)
