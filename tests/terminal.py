"""A command in a terminal of its own, as somebody who types would see it."""

import os
import pty
import re
import select
import signal
import subprocess
import time

_COMMANDS_OF_TERMINALS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """Runs a command whose stdin, stdout and stderr are a pseudo-terminal; a context."""

    def __init__(self, command, *, cwd, environment=None):
        self.screen, theirs = pty.openpty()
        self.text = ""
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=cwd,
            env=environment or os.environ,
            start_new_session=True,
            close_fds=True,
        )
        os.close(theirs)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.screen)

    def _read(self, seconds):
        """Adds what is there within so many seconds; whether there was anything."""
        if not select.select([self.screen], [], [], seconds)[0]:
            return False
        try:
            found = os.read(self.screen, 65536)
        except OSError:  # Linux: nobody has the other end open any more
            return False
        self.text += found.decode(errors="replace")
        return bool(found)

    def wait_for(self, text, seconds=240):
        """All that was written since the last call, up to this text; it has to come in time."""
        end = time.monotonic() + seconds
        while text not in plain(self.text):
            assert time.monotonic() < end, f"{text!r} did not come: {self.text[-3000:]!r}"
            if not self._read(0.2):
                ended = self.process.poll() is not None
                assert not ended, f"ended with {self.process.poll()}: {self.text[-3000:]!r}"
        before, _, after = plain(self.text).partition(text)
        self.text = after
        return before + text

    def type(self, text):
        os.write(self.screen, text.encode())

    def interrupt(self):
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, seconds=60):
        """Waits for the command; its exit code."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end:
            self._read(0.2)
        return self.process.wait(1)


def plain(text):
    """What a terminal shows of it, as lines."""
    return _COMMANDS_OF_TERMINALS.sub("", text).replace("\r\n", "\n")
