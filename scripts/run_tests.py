#!/usr/bin/env python3
"""Builds all tests and runs them: several test programs side by side, because most of what they do is wait for other programs.

Prints each program's output whole when it has ended, what took how long, and what failed; the exit status says whether all passed.
LANES says how many programs run at once, TEST_MINUTES after how many one of them is given up. Arguments go to `cargo test`, for example
`-p tests`; what stands after `--` goes to every test program.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

# What takes long begins first, so that it does not run alone at the end. Whatever is not named here comes after it.
LONG_FIRST = [
    "networks", "durability", "network_faults", "network_steps", "bridge", "histories", "derived", "command_line", "audit", "iti43",
    "failing_sync", "keys", "round_trip", "ipfs", "promote", "two_sites", "at_source", "erase", "power_cut", "paper", "ledger_nodes",
    "rotated_source", "browser", "dicomweb",
]


def build(arguments):
    """Test programs as (name, path, directory to run it in), as cargo says them."""
    command = ["cargo", "test", "--locked", "--no-run", "--message-format=json-render-diagnostics", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as cargo:
        messages = [json.loads(line) for line in cargo.stdout]
    if cargo.returncode != 0:
        sys.exit(cargo.returncode)
    artifacts = (m for m in messages if m["reason"] == "compiler-artifact" and m["profile"]["test"] and m["executable"])
    return [(m["target"]["name"], m["executable"], str(Path(m["manifest_path"]).parent)) for m in artifacts]


class Run:
    """Runs programs in lanes, each in a process group of its own so that nothing it starts outlives it."""

    def __init__(self, arguments, limit_s):
        self.arguments, self.limit_s = arguments, limit_s
        self.lock, self.groups, self.outcomes, self.ends = threading.Lock(), set(), [], False

    def lane(self, programs):
        while True:
            with self.lock:
                if self.ends or not programs:
                    return
                program = programs.pop(0)
            self.one(*program)

    def one(self, name, path, directory):
        begun = time.monotonic()
        environment = {**os.environ, "CARGO_MANIFEST_DIR": directory}
        # Into a file: a program that it leaves behind would keep a pipe open.
        output = tempfile.TemporaryFile()
        child = subprocess.Popen([path, *self.arguments], cwd=directory, env=environment, stdin=subprocess.DEVNULL,
                                 stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        with self.lock:
            self.groups.add(child.pid)
            if self.ends:
                kill(child.pid, signal.SIGTERM)
        giving_up = threading.Timer(self.limit_s, kill, [child.pid, signal.SIGKILL])
        giving_up.start()
        _, status, used = os.wait4(child.pid, 0)
        giving_up.cancel()
        kill(child.pid, signal.SIGKILL)
        output.seek(0)
        took = time.monotonic() - begun
        with self.lock:
            self.groups.discard(child.pid)
            self.outcomes.append((took, name, status, used.ru_utime + used.ru_stime))
            print(f"\n==== {name} ({path}): {'passed' if status == 0 else f'FAILED with {status}'} after {took:.0f} s", flush=True)
            shutil.copyfileobj(output, sys.stdout.buffer)
            sys.stdout.buffer.flush()

    def end(self, number, _frame):
        self.ends = True
        for group in list(self.groups):
            kill(group, signal.SIGTERM)
        sys.exit(128 + number)


def kill(group, number):
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass


def main():
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    programs = build(given[:split] or ["--workspace"])
    order = {name: place for place, name in enumerate(LONG_FIRST)}
    programs.sort(key=lambda program: order.get(program[0], len(order)))
    run = Run(given[split + 1 :], 60 * float(os.environ.get("TEST_MINUTES", "25")))
    signal.signal(signal.SIGTERM, run.end)
    signal.signal(signal.SIGINT, run.end)
    begun = time.monotonic()
    waiting = list(programs)
    lanes = [threading.Thread(target=run.lane, args=[waiting], daemon=True) for _ in range(int(os.environ.get("LANES", "3")))]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    print(f"\n==== {len(programs)} test programs in {time.monotonic() - begun:.0f} s; what took longest, and its processor time:")
    for took, name, status, processor in sorted(run.outcomes, reverse=True):
        if took > 20 or status != 0:
            print(f"{took:6.0f} s {processor:6.0f} s  {name}{'' if status == 0 else '  FAILED'}")
    missing = len(programs) - len(run.outcomes)
    if missing or not programs:
        print(f"{missing} of {len(programs)} test programs were not run to their end")
    sys.exit(missing != 0 or not programs or any(status != 0 for _, _, status, _ in run.outcomes))


main()
