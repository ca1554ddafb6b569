"""The hostile programs in a jail, with all that they might touch around them; standard library only,
so that it runs as another user under another interpreter:

    python campaign.py FOLDER_OF_JAIL [landlock] [namespaces] [START::STEP]

prints a line of JSON: what was bad, how many ran, and seconds. "1::5" is every fifth, from the
second one on.
"""

import contextlib
import importlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

SLEEPER = "31337"
EVERY_ONE = slice(None)


def processes(folder):
    """Ids of processes that run the files of this folder, or what programs start."""
    found = set()
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            is_file_of_jail = any(word.startswith(f"{folder}/") for word in words)
            if is_file_of_jail or words[:2] == ["sleep", SLEEPER]:
                found.add(int(entry.name))
    return found


class Surroundings:
    """What a program might touch, and whether it did."""

    def __enter__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="surroundings-"))
        self.folder.chmod(0o777)
        self.canary = self.folder / "canary"
        self.canary.write_text("canary")
        self.canary.chmod(0o666)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.unix = socket.socket(socket.AF_UNIX)
        name = f"jail-{os.getpid()}"
        self.unix.bind(f"\0{name}")
        self.unix.listen()
        self.victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(10**6)"])
        self.env = {
            "canary": str(self.canary),
            "port": self.listener.getsockname()[1],
            "abstract": name,
            "victim": self.victim.pid,
            "parent": os.getpid(),
        }
        self.before = self._state()
        return self

    def _state(self):
        status = self.canary.stat()
        return {
            "canary": self.canary.read_text(),
            "mode": status.st_mode,
            "time": status.st_mtime_ns,
            "links": status.st_nlink,
            "folder": sorted(os.listdir(self.folder)),
            "victim": self.victim.poll(),
            "nice": os.getpriority(os.PRIO_PROCESS, self.victim.pid),
            "left": [
                p
                for p in ("/tmp", "/usr", "/dev/shm", os.getcwd())
                if os.path.lexists(f"{p}/jail-hostile")
            ],
        }

    def changes(self):
        """What is otherwise than it was."""
        found = []
        with contextlib.suppress(BlockingIOError):
            for name, one in (("TCP", self.listener), ("unix", self.unix)):
                one.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    one.accept()
                    found.append(f"{name}: somebody connected")
        try:
            after = self._state()
        except OSError as error:
            return [*found, str(error)]
        return found + [key for key, value in self.before.items() if after[key] != value]

    def __exit__(self, *exc):
        self.victim.kill()
        self.victim.wait()
        self.listener.close()
        self.unix.close()
        import shutil

        shutil.rmtree(self.folder, ignore_errors=True)


def reaching(supervisor, hostile, env, wall_s):
    """(name, job) of programs that touch what is around them."""
    check = f"def check(candidate):\n    assert candidate({env!r}) is True\n"
    for name, program in {**hostile.ESCAPES, **hostile.ENDLESS}.items():
        yield name, supervisor.Job("", program, "f", "", check, "continuation", wall_s)


def cheating(supervisor, hostile, wall_s):
    """(name, job) of programs that only want to be counted as right."""
    for name, program in hostile.CHEATS.items():
        for kind, tests in hostile.CHECKS.items():
            job = supervisor.Job("", program, "f", "", tests, "continuation", wall_s)
            yield f"{name} ({kind})", job


def control(hostile, env):
    """Names of harmless escapes that fail without any fence: they would show nothing."""
    missed = []
    for name in sorted(hostile.HARMLESS):
        code = f"{hostile.ESCAPES[name]}\nimport sys\nsys.exit(0 if f({env!r}) is True else 1)"
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
        if done.returncode:
            missed.append(f"{name}: {done.stderr.decode().strip().splitlines()[-1:]}")
    return missed


def run(supervisor, hostile, fences, folder, wall_s=1.0, part=EVERY_ONE):
    """What is bad of this part of the programs, a line each; and the verdicts."""
    bad, verdicts = [], {}
    with Surroundings() as around, supervisor.Jail(fences, folder=folder) as jail:
        started = processes(folder)
        # One after the other, so that it is known which of them changed something.
        for name, job in list(reaching(supervisor, hostile, around.env, wall_s))[part]:
            began = time.monotonic()
            verdicts[name] = jail.run(job).verdict
            # Beyond their time: what two interpreters take to start on a busy machine.
            if time.monotonic() - began > wall_s + 30:
                bad.append(f"{name}: was not ended in time")
            changed = around.changes()
            bad += [f"{name}: {change}" for change in changed]
            if changed:
                around.before = around._state()
        with ThreadPoolExecutor(2) as pool:
            of_cheats = dict(list(cheating(supervisor, hostile, wall_s))[part])
            for name, outcome in zip(
                of_cheats, pool.map(jail.run, of_cheats.values()), strict=True
            ):
                verdicts[name] = outcome.verdict
        bad += [f"{name}: counted as right" for name, v in verdicts.items() if v == "correct"]
        bad += [f"a cheat: {change}" for change in around.changes()]
        deadline = time.monotonic() + 5
        while processes(folder) - started and time.monotonic() < deadline:
            time.sleep(0.05)
        bad += [f"process {pid} is left" for pid in processes(folder) - started]
    return bad, verdicts


def main():
    folder = pathlib.Path(sys.argv[1]).resolve()
    signal.alarm(1200)
    # The folder is a package of its own here as inside.
    sys.path[:0] = [str(folder.parent), str(pathlib.Path(__file__).resolve().parent)]
    supervisor = importlib.import_module(f"{folder.name}.supervisor")
    hostile = importlib.import_module("hostile")
    began = time.monotonic()
    fences = [word for word in sys.argv[2:] if "::" not in word]
    part = EVERY_ONE
    for word in set(sys.argv[2:]) - set(fences):
        start, step = word.split("::")
        part = slice(int(start), None, int(step))
    bad, verdicts = run(supervisor, hostile, fences or None, folder, part=part)
    seconds = round(time.monotonic() - began, 1)
    counts = {v: list(verdicts.values()).count(v) for v in supervisor.VERDICTS}
    print(
        json.dumps(
            {
                "user": os.getuid(),
                "ran": len(verdicts),
                "bad": bad,
                "verdicts": counts,
                "s": seconds,
            }
        )
    )


if __name__ == "__main__":
    main()
