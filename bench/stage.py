"""Where a benchmark plays: a private folder, the programs started in it, and their end.

Every program leads its own process group, so that its children are counted and stopped with it, and
nothing that was running before is ever touched. All stay in one session: Linux may share the
processors by session, and then many sessions would get more of them than one.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

STOP_SECONDS = 30
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """Something that makes the figures worthless; the message names it."""


def say(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(what, condition, seconds, pause=0.02):
    """The first true value of `condition()`; `BenchError` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise BenchError(f"no {what} within {seconds} seconds")
        time.sleep(pause)


class Program:
    """A running program, and what it has cost so far with all of its children."""

    def __init__(self, name, argv, log, env):
        self.name = name
        self.log = log
        with open(log, "ab") as stream:
            self.process = subprocess.Popen(
                [str(part) for part in argv],
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                env={**os.environ, **env}, process_group=0,
            )

    def alive(self):
        return self.process.poll() is None

    def check(self):
        """`True`, or the reason why the program is no longer there."""
        if not self.alive():
            tail = self.log.read_text(errors="replace")[-800:]
            raise BenchError(f"{self.name} ended with {self.process.returncode}:\n{tail}")
        return True

    def _pids(self):
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            try:
                fields = stat_fields(entry.name)
            except OSError:
                continue
            if int(fields[2]) == self.process.pid:
                yield entry.name, fields

    def cpu_seconds(self):
        """User and system time of every process of the program, ended children included."""
        ticks = sum(sum(map(int, fields[11:15])) for _, fields in self._pids())
        return ticks / TICKS_A_SECOND

    def memory(self, field):
        """Bytes of `VmHWM` (peak) or `VmRSS` (now), summed over the program's processes."""
        total = 0
        for pid, _ in self._pids():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            total += sum(
                int(line.split()[1]) * 1024
                for line in status.splitlines() if line.startswith(field + ":")
            )
        return total

    def stop(self, kill=False):
        """Ends the program: SIGTERM to its leader, SIGKILL to what is left of its group."""
        if self.alive() and not kill:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                say(f"{self.name} did not stop within {STOP_SECONDS} s and is killed")
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


def stat_fields(pid):
    """The fields of /proc/PID/stat from the state on: the name before may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


class Stage:
    """The private folder and all programs started in it; leaving it ends and removes both."""

    def __init__(self, root):
        root.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="run-", dir=root))
        self.folder.chmod(0o755)
        self.programs = []

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        for program in reversed(self.programs):
            program.stop(kill=True)
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            say(f"logs are left in {self.folder}")

    def start(self, name, argv, env=None):
        log = self.folder / f"{name}-{len(self.programs)}.log"
        program = Program(name, argv, log, env or {})
        self.programs.append(program)
        return program

    def fresh_folder(self, name):
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
