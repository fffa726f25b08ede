"""The lines of a log: each once over many streams, and progress bars as lines."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# A progress bar draws itself many times a second; a person reads one state of it a second.
PROGRESS_SECONDS = 1.0
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z ?(.*)", re.DOTALL)


class LogCursor:
    """The place up to which a container's log was read: a resumed stream repeats and loses nothing."""

    def __init__(self) -> None:
        self._last = ""
        self._at_last = 0
        self._skipped = 0

    @property
    def since(self) -> str | None:
        """The time to resume from. The server looks at whole seconds, so some lines come again."""
        return f"{self._last[:19]}Z" if self._last else None

    def resume(self) -> None:
        """Say that a new stream begins."""
        self._skipped = 0

    def fresh(self, line: str) -> str | None:
        """Take the next line of the stream.

        :return: the line without its time stamp; ``None`` if it was read before
        """
        match = _STAMP.fullmatch(line)
        if match is None:  # the continuation of a line too long for one piece
            return line
        stamp = f"{match[1]}.{(match[2] or '').ljust(9, '0')}"
        if stamp < self._last:
            return None
        if stamp > self._last:
            self._last, self._at_last, self._skipped = stamp, 1, 1
            return match[3]
        # Several lines can share a time stamp: those counted before the break come again, in order.
        self._skipped += 1
        if self._skipped <= self._at_last:
            return None
        self._at_last = self._skipped
        return match[3]


class ProgressBars:
    """Turns progress bars, which redraw one line after a carriage return, into lines.

    Of each burst the last state shows, and no more than one each second.
    """

    def __init__(self, sink: Callable[[str], None]) -> None:
        self._sink = sink
        self._held: str | None = None
        self._shown_at: float | None = None

    def line(self, text: str, now: float) -> None:
        """Take one line as the log has it.

        :param now: seconds by any clock
        """
        plain = text.strip("\r")
        if "\r" not in plain:
            self.flush()
            self._sink(plain)
            return
        self._held = next((part for part in reversed(plain.split("\r")) if part), "")
        if self._shown_at is None or now - self._shown_at >= PROGRESS_SECONDS:
            self._shown_at = now
            self.flush()

    def flush(self) -> None:
        """Show the state that was held back, if any."""
        if self._held is not None:
            held, self._held = self._held, None
            self._sink(held)
