"""As PID 1 of a PID namespace of its own this is the daemon under test; else it makes that namespace.

The library is the one that SEXTON_LIBRARY names.
"""

import asyncio
import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import sexton  # noqa: E402

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


def bad_options_are_warned_of():
    log, lines = logging.getLogger("sexton"), Lines()
    log.addHandler(lines)
    for options in [{}, {"enabled": "perhaps"}, {"interval": -1}, {"grace": float("nan")}, {"interval": "5 minutes"},
                    {"grace": object()}, {"enabled": [True]}, {"interval": True}]:
        assert not sexton.sweep(**options).status()["active"]
    assert len(lines.lines) == 7, lines.lines
    assert "subreaper" in sexton.sweep(enabled=True).status()["reason"]
    assert len(lines.lines) == 8 and "subreaper" in lines.lines[-1], lines.lines
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


def the_readme_runs():
    code = (HERE / "README.md").read_text().split("```python\n")[1].split("```")[0]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "README.md", "exec"), {})
    assert out.getvalue() == "running True\n-15 gone\n", out.getvalue()


def the_wheel_installs(tmp):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-index", "-w", tmp, str(HERE)], check=True)
    [wheel] = Path(tmp).glob("sexton-*.whl")
    subprocess.run([*pip, "install", "--no-index", "--no-deps", "--target", f"{tmp}/site", str(wheel)], check=True)
    check = "import os, sexton; print(sexton.__file__, sexton.Process.open(os.getpid()).identity)"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp}/site"}
    out = subprocess.run([sys.executable, "-c", check], env=env, cwd=tmp, check=True, capture_output=True,
                         text=True).stdout
    assert out.startswith(f"{tmp}/site/sexton/") and " boot_id=" in out, out


def main():
    if os.getpid() == 1:
        return as_init()
    bad_options_are_warned_of()
    identities_are_proven()
    the_reaper_reaps_what_is_registered()
    the_readme_runs()
    if len(sys.argv) > 1:
        the_wheel_installs(sys.argv[1])
    subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", sys.executable, __file__], check=True)
    print("python: all is well")


main()
