"""As PID 1 of a PID namespace of its own this is the daemon under test; else it makes that namespace.

It tests the package that is installed: run it from elsewhere than beside the sources.
"""

import asyncio
import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import metadata
from pathlib import Path

import sexton

COUNT = int(os.environ.get("SEXTON_TEST_COUNT", "300"))
BURST = 50


def eventually(what, holds):
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.01)


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()[0].decode()
    except FileNotFoundError:
        return None


def defunct():
    return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit() and state(each.name) == "Z"]


def as_init():
    reaped = []
    sweeping = sexton.sweep(enabled=True, interval=0.02, grace=0, on_report=reaped.extend)
    assert sweeping.status()["active"], sweeping.status()
    # Its owner asks much later than any grace.
    late = subprocess.Popen(["sh", "-c", "exit 99"])
    forked = os.fork()
    if forked == 0:
        os._exit(98)
    sweeping.spare(forked)
    expected = 0
    for start in range(0, COUNT, BURST):
        codes = [(start + i) % 256 for i in range(BURST)]
        command = "(sleep 0.0{}) & exit {}"
        children = [subprocess.Popen(["sh", "-c", command.format(i % 10, code)]) for i, code in enumerate(codes)]
        assert [child.wait() for child in children] == codes
        expected += BURST
    asyncio.run(by_asyncio())
    eventually("every orphan is reaped", lambda: len(reaped) >= expected)
    eventually("the late ones alone are <defunct>", lambda: defunct() == sorted([late.pid, forked]))
    passes = sweeping.status()["passes"]
    eventually("many more looks", lambda: sweeping.status()["passes"] > passes + 10)
    assert late.wait() == 99
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 98
    assert all(zombie.code == 0 and zombie.name in ("sleep", "sh") for zombie in reaped), reaped
    sweeping.stop()
    assert sweeping.status()["reason"] == "stopped"
    print(f"{COUNT} exit codes and {len(reaped)} orphans")


async def by_asyncio():
    async def one(code):
        child = await asyncio.create_subprocess_exec("sh", "-c", f"exit {code}")
        assert await child.wait() == code

    await asyncio.gather(*(one(code) for code in range(50)))


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


class Incomparable:
    def __eq__(self, other):
        raise ValueError("as the test wants it")


def bad_options_are_warned_of():
    log, lines = logging.getLogger("sexton"), Lines()
    log.addHandler(lines)
    for options in [{}, {"enabled": "perhaps"}, {"interval": -1}, {"grace": float("nan")}, {"interval": "5 minutes"},
                    {"grace": object()}, {"enabled": [True]}, {"interval": True}, {"enabled": Incomparable()},
                    {"interval": "9" * 5000 + "s"}, {"on_report": 7}, {"enabled": "false"}, {"enabled": 0}]:
        assert not sexton.sweep(**options).status()["active"]
    assert len(lines.lines) == 10, lines.lines
    for on in [True, 1, "1", "true"]:
        assert "subreaper" in sexton.sweep(enabled=on).status()["reason"], on
    assert len(lines.lines) == 14 and "subreaper" in lines.lines[-1], lines.lines
    log.removeHandler(lines)


def identities_are_proven():
    child = subprocess.Popen(["sleep", "1000"])
    with sexton.Process.open(child.pid) as held:
        identity = held.identity
        assert sexton.verify(identity) == "running"
        with sexton.Process.reopen(identity) as again:
            assert again.identity == identity and again.fileno() > 2 and again.signal(signal.SIGKILL)
        assert child.wait() == -9
        assert not held.signal(signal.SIGKILL)
    assert sexton.verify(identity) == "gone"
    for pid in [0, 1, -1, 2**32 + 2, 2.5, "77", None, True]:
        with contextlib.suppress(sexton.Error):
            sexton.Process.open(pid)
            raise AssertionError(pid)


def the_reaper_reaps_what_is_registered():
    with sexton.Reaper() as reaper:
        mine = subprocess.Popen(["sh", "-c", "exit 5"])
        pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], {})
        reaper.register(pid)
        assert reaper.take(20) == sexton.Exit(pid, 7, None, False)
        assert reaper.take() is None and mine.wait() == 5
        stats = reaper.stats()
        assert (stats["reaped"], stats["registered"], stats["alive"]) == (1, 0, 1), stats


def whoever_waits_for_an_exit_hears_of_the_stop():
    reaper, heard = sexton.Reaper(), []

    def wait(timeout):
        try:
            heard.append(reaper.take(timeout))
        except sexton.Error as error:
            heard.append(error.code)

    waiting = [threading.Thread(target=wait, args=(timeout,), daemon=True) for timeout in (None, 1000, float("inf"))]
    for thread in waiting:
        thread.start()
    assert reaper.take(-1) is None
    # Asleep in the wait, as the kernel shows it: this is what the stop comes into.
    eventually("they wait", lambda: all(b" S " in Path(f"/proc/self/task/{each.native_id}/stat").read_bytes() for each in waiting))
    reaper.stop()
    for thread in waiting:
        thread.join(20)
    assert heard == ["STOPPED"] * 3, heard


def a_program_ends_while_exits_are_told():
    code = """if True:
        import os, sexton
        kept = [sexton.Reaper(lambda exit: None), sexton.Reaper()]
        for i in range(100):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            kept[i % 2].register(pid)
    """
    for _ in range(10):
        subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


def a_reaper_tells_of_what_is_registered():
    told = []

    def on_exit(exit):
        told.append(exit)
        raise RuntimeError("in on_exit")

    log, lines = logging.getLogger("sexton"), Lines()
    log.addHandler(lines)
    reaper = sexton.Reaper(on_exit)
    codes = range(1, 256, 8)
    ends = [os.pipe() for _ in codes]
    pids = []
    for code, (reading, writing) in zip(codes, ends):
        pid = os.fork()
        if pid == 0:
            for _, each in ends:
                os.close(each)
            os.read(reading, 1)
            os._exit(code)
        pids.append(pid)
        with sexton.Process.open(pid) as held:
            reaper.register(held)
        reaper.register(pid)
    assert reaper.stats()["registered"] == len(pids), reaper.stats()
    for reading, writing in ends:
        os.close(reading)
        os.close(writing)
    eventually("every exit is told", lambda: len(told) == len(pids))
    assert sorted(told) == sorted(sexton.Exit(pid, code, None, False) for pid, code in zip(pids, codes)), told
    eventually("every failure is logged", lambda: len(lines.lines) == len(pids))
    for none, code in [(os.getppid(), "NOT_A_CHILD"), (2**31 - 1, "GONE"), (1, "BAD_ARGUMENT"), ("7", "BAD_ARGUMENT")]:
        refused(code, lambda: reaper.register(none))
    reaper.stop()
    refused("STOPPED", lambda: reaper.register(2))
    sexton.Reaper(on_exit=7).stop()
    assert "on_exit 7" in lines.lines[-1], lines.lines
    log.removeHandler(lines)


def refused(code, call):
    try:
        call()
    except sexton.Error as error:
        assert error.code == code, (code, error.code)
    else:
        raise AssertionError(f"it was not {code}")


def a_gate_admits_nobody_once_it_drains():
    gate = sexton.Gate()
    start = gate.enter("start")
    refused("BAD_ARGUMENT", lambda: gate.enter("No word"))
    idle = []
    with gate.enter("upload"):
        assert not gate.is_draining and not gate.wait_idle(0)
        gate.begin_drain()
        refused("DRAINING", lambda: gate.enter("start"))
        assert sorted(each.kind for each in gate.in_flight()) == ["start", "upload"], gate.in_flight()
        waiting = threading.Thread(target=lambda: idle.append(gate.wait_idle()))
        waiting.start()
    assert not gate.is_idle and [each.kind for each in gate.in_flight()] == ["start"]
    start.leave()
    start.leave()
    waiting.join()
    assert idle == [True] and gate.is_idle and gate.is_draining and gate.in_flight() == []


def the_readme_runs():
    code = metadata("sexton").get_payload().split("```python\n")[1].split("```")[0]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "README.md", "exec"), {})
    assert out.getvalue() == "running True\n-15 gone\n", out.getvalue()


def main():
    if os.getpid() == 1:
        return as_init()
    bad_options_are_warned_of()
    identities_are_proven()
    the_reaper_reaps_what_is_registered()
    whoever_waits_for_an_exit_hears_of_the_stop()
    a_program_ends_while_exits_are_told()
    a_reaper_tells_of_what_is_registered()
    a_gate_admits_nobody_once_it_drains()
    the_readme_runs()
    subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", sys.executable, __file__], check=True)
    print("python: all is well")


main()
