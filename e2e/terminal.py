"""A pseudo-terminal with a screen that can be read: what somebody at a terminal sees, and presses."""

import copy
import fcntl
import os
import re
import signal
import struct
import subprocess
import termios
import threading
from contextlib import suppress

import pyte

from node import wait_until

# Any answer that is due at once; a busy machine may take a while.
PATIENCE_SECONDS = 20
KEYS = {
    "Enter": "\r",
    "Esc": "\x1b",
    "Tab": "\t",
    "Up": "\x1b[A",
    "Down": "\x1b[B",
    "Right": "\x1b[C",
    "Left": "\x1b[D",
    "Ctrl-C": "\x03",
}


class Screen(pyte.Screen):
    """With the other screen, that programs take and give back (1049), which pyte does not know of."""

    OTHER = 1049

    def set_mode(self, *modes, **how):
        if how.get("private") and self.OTHER in modes:
            self.kept = copy.deepcopy(self.buffer), copy.copy(self.cursor)
            self.erase_in_display(2)
        super().set_mode(*modes, **how)

    def reset_mode(self, *modes, **how):
        super().reset_mode(*modes, **how)
        if how.get("private") and self.OTHER in modes:
            self.buffer, self.cursor = self.kept
            self.dirty.update(range(self.lines))


class Terminal:
    """A command in a pseudo-terminal of its own; it is killed at the end of a `with`, if it has not ended by then."""

    def __init__(self, *command: str, columns: int = 80, lines: int = 24, **environment: str):
        self.screen = Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.lock, self.raw = threading.Lock(), b""
        self.master, self.slave = os.openpty()
        self.size(columns, lines)
        self.before = termios.tcgetattr(self.slave)
        names = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CLICOLOR_FORCE")}
        # What opens /dev/tty needs a terminal that is its session's. Whatever started the tests in the background may have had SIGINT ignored.
        # Programs do that, and not a `preexec_fn`: forking a process with gRPC's threads can lose the child.
        self.process = subprocess.Popen(
            ["env", "--default-signal=INT", "setsid", "--ctty", *map(str, command)],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**names, "TERM": "xterm-256color", **environment},
        )
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        # Ends when nobody has the other side open any more.
        with suppress(OSError):
            while data := os.read(self.master, 65536):
                with self.lock:
                    self.raw += data
                    self.stream.feed(data)

    def size(self, columns: int, lines: int):
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int):
        with self.lock:
            self.screen.resize(lines, columns)
            # What is there then was drawn for this size.
            self.screen.erase_in_display(2)
        self.size(columns, lines)

    def press(self, *keys: str):
        """Names of KEYS, or text."""
        for key in keys:
            os.write(self.master, KEYS.get(key, key).encode())

    def lines(self) -> list[str]:
        with self.lock:
            return [line.rstrip() for line in self.screen.display]

    def squeezed(self) -> list[str]:
        return [re.sub(r"\s+", " ", line.strip()) for line in self.lines()]

    def until(self, condition, what: str):
        """Waits until the lines, with their gaps squeezed, are so, and returns what the condition gave."""
        try:
            return wait_until(lambda: condition(self.squeezed()), PATIENCE_SECONDS, what)
        except TimeoutError as late:
            raise AssertionError(f"{late}; the screen shows:\n" + "\n".join(self.lines())) from None

    def shows(self, pattern: str):
        """Waits for a line that matches."""
        return self.until(
            lambda lines: next((found for line in lines if (found := re.search(pattern, line))), None),
            f"a line with {pattern}",
        )

    def color_of(self, text: str) -> str:
        """The colour of the first letter of the first line that begins with it."""
        with self.lock:
            for number, line in enumerate(self.screen.display):
                if line.startswith(text):
                    return self.screen.buffer[number][0].fg
        raise AssertionError(f"no line begins with {text}")

    def wait(self) -> int:
        code = self.process.wait(PATIENCE_SECONDS)
        return code

    def restored(self) -> bool:
        """The terminal is as it was before."""
        return termios.tcgetattr(self.slave) == self.before

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with suppress(ProcessLookupError):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self.slave)
        self.reader.join()
        os.close(self.master)
