"""Who works in a folder of a bucket: an object that its owner renews, as a bucket has no locks.

The object is made where none was, and changed where it still is as it was last seen: a store does
both in one step, so of two jobs that try it at once one gets it. A job that was killed renews it no
more. Whoever finds it there watches it: once it is renewed, somebody is at work; when it was not
for a minute, it is taken over. That is a minute of the watcher's own clock: hosts may differ.
"""

import json
import os
import platform
import secrets
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Any

from dft_jax.runtime import bucket

RENEW_S = 10.0
STALE_S = 60.0  # also a pause of the owner's that costs it the folder
_LOOK_S = 1.0


class Taken(Exception):
    """Another job has the folder; says which."""


class Lease:
    """Holds the object `address` from its making to `release`, renewed by a thread.

    Raises:
      Taken: somebody else renews it.
      OSError: the store cannot be asked.
    """

    def __init__(self, address: str):
        self.address = address
        self.owner = {
            "host": platform.node(),
            "process": os.getpid(),
            "word": secrets.token_hex(8),
        }
        self.generation = self._taken()
        self.renewed_at = time.monotonic()
        self.lock = threading.Lock()
        self.ends = threading.Event()
        self.thread = threading.Thread(target=self._renew_on, name="lease", daemon=True)
        self.thread.start()

    def _taken(self) -> bytes:
        """Waits until the object can be made or taken over; its generation then."""
        content, seen = bucket.read_with_generation(self.address)
        since = time.monotonic()
        if content is not None:
            _say(
                f"{self.address} is held by {_owner_of(content)}; waiting up to {STALE_S:.0f} s to"
                " see whether that job is alive"
            )
        while True:
            # No object, or one that nobody has renewed for so long.
            is_free = content is None or time.monotonic() - since >= STALE_S
            if is_free and (generation := self._written(seen)):
                if content is not None:
                    _say(f"{self.address} was not renewed for {STALE_S:.0f} s, and is taken over")
                return generation
            time.sleep(_LOOK_S)
            content, generation = bucket.read_with_generation(self.address)
            if content is not None and generation != seen:
                raise Taken(_owner_of(content))
            seen = generation

    def _written(self, generation: bytes) -> bytes | None:
        """The new generation; None where the object has changed since it had the one given."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        content = json.dumps(self.owner | {"renewed": now}).encode()
        bucket.write_if(self.address, content, generation)
        # The answer may have been lost, and the request been refused when it was made again.
        held, generation = bucket.read_with_generation(self.address)
        if held is not None and json.loads(held).get("word") == self.owner["word"]:
            return generation
        return None

    def _renew_on(self) -> None:
        while not self.ends.wait(RENEW_S):
            try:
                self.renew()
            except Taken:
                return  # the next `require` says so
            except OSError as error:
                _say(f"{self.address} could not be renewed ({error})")

    def renew(self) -> None:
        """Raises Taken where it is no longer this job's."""
        with self.lock:
            generation = self._written(self.generation)
            if generation is None:
                content, _ = bucket.read_with_generation(self.address)
                raise Taken(_owner_of(content))
            self.generation = generation
            self.renewed_at = time.monotonic()

    def require(self) -> None:
        """Taken where another job may have the folder by now: nothing may be written then."""
        if time.monotonic() - self.renewed_at > 2 * RENEW_S or not self.thread.is_alive():
            self.renew()

    def release(self) -> None:
        """Lets others in. Where the store does not answer, they wait until it is stale."""
        self.ends.set()
        self.thread.join()
        try:
            bucket.write_if(self.address, None, self.generation)
        except OSError as error:
            _say(f"{self.address} could not be removed ({error})")


def _owner_of(content: bytes | None) -> str:
    """Whose it is, for a reader."""
    try:
        held: dict[str, Any] = json.loads(content or b"")
        return f"process {held['process']} on {held['host']} (last seen {held['renewed']})"
    except (ValueError, KeyError, TypeError):
        return "an unknown job"


def _say(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)
