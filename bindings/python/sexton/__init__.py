"""Custody of processes: hold one by identity, reap registered children, sweep orphans as PID 1 or a subreaper.

A thin layer over the C library `libsexton_ffi`, by ctypes. Nothing that starts here raises for a bad option or a
system that cannot: a daemon must start all the same. It warns, and `status()` says why.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import json
import logging
import os
import re
import signal as _signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Union

__all__ = ["Error", "Exit", "Gate", "Inside", "Permit", "Process", "Reaper", "Sweep", "Zombie", "sweep", "verify"]
__version__ = "0.1.0"

_log = logging.getLogger("sexton")

_GONE, _UNPROVEN, _NOTHING_YET = -1, -3, -9
_NAMES = {-1: "GONE", -2: "NOT_A_CHILD", -3: "UNPROVEN", -4: "UNSUPPORTED", -5: "STOPPED", -6: "BAD_ARGUMENT",
          -11: "DRAINING"}
_DEFAULT_MS = 1000


class Error(OSError):
    """A refusal: `code` is its name, as in `sexton.h`."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Zombie(NamedTuple):
    """A zombie that is no more; `code` or `signal` is None."""

    pid: int
    name: str
    code: Optional[int]
    signal: Optional[int]


class Exit(NamedTuple):
    """The end of a registered child; both None where nobody can know. `vanished`: another owner reaped it."""

    pid: int
    code: Optional[int]
    signal: Optional[int]
    vanished: bool


class Inside(NamedTuple):
    """An operation inside a gate, and for how many seconds it has been."""

    kind: str
    age: float


class _Inside(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_char_p), ("age_ms", ctypes.c_uint64)]


class _Exit(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("pid", "code", "signal", "vanished")]


_STATS = ("registered", "polled", "held", "reaped", "vanished", "sweeps", "last_sweep_ms", "restarts",
          "latency_total_us", "latency_max_us", "alive")


class _Stats(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in _STATS]


class _Options(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("enabled", "interval_ms", "grace_ms")]


class _Zombie(ctypes.Structure):
    _fields_ = [("pid", ctypes.c_int32), ("code", ctypes.c_int32), ("signal", ctypes.c_int32),
                ("name", ctypes.c_char_p)]


_OnInside = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Inside), ctypes.c_void_p)
_OnExit = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Exit), ctypes.c_void_p)
_OnZombie = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Zombie), ctypes.c_void_p)
_OnLog = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_LEVELS = {1: logging.ERROR, 2: logging.WARNING, 3: logging.INFO}


@_OnLog
def _on_log(level: int, line: bytes, _user: Any) -> None:
    _log.log(_LEVELS.get(level, logging.INFO), "%s", line.decode("utf-8", "replace"))


def _load() -> tuple[Optional[ctypes.CDLL], str]:
    if sys.platform != "linux":
        return None, f"not Linux but {sys.platform}"
    try:
        lib = ctypes.CDLL(os.environ.get("SEXTON_LIBRARY") or str(Path(__file__).with_name("libsexton_ffi.so")))
    except OSError as error:
        return None, f"the library does not load: {error}"
    thing, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    for name, args in {
        "open": [ctypes.c_int32, thing], "reopen": [text, thing], "verify": [text], "identity": [thing, text, size],
        "signal": [thing, ctypes.c_int], "pidfd": [thing], "reaper_start": [thing, thing, thing],
        "reaper_register": [thing, ctypes.c_int32], "reaper_register_process": [thing, thing],
        "reaper_read_stats": [thing, thing], "sweeper_pass": [thing, _OnZombie, thing],
        "gate_enter": [thing, text, thing], "gate_begin_drain": [thing], "gate_is_draining": [thing],
        "gate_is_idle": [thing], "gate_in_flight": [thing, _OnInside, thing],
        "gate_wait_idle": [thing, ctypes.c_int64], "sweeper_spare": [thing, ctypes.c_int32], "sweeper_status": [thing, text, size],
    }.items():
        function = getattr(lib, f"sexton_{name}")
        function.argtypes, function.restype = args, ctypes.c_int
    for name, args in {"close": [thing], "reaper_stop": [thing], "sweeper_free": [thing], "log": [_OnLog, thing],
                       "permit_leave": [thing], "gate_free": [thing]}.items():
        function = getattr(lib, f"sexton_{name}")
        function.argtypes, function.restype = args, None
    lib.sexton_sweeper_new.argtypes, lib.sexton_sweeper_new.restype = [thing, thing], thing
    lib.sexton_gate_new.argtypes, lib.sexton_gate_new.restype = [], thing
    lib.sexton_error.argtypes, lib.sexton_error.restype = [], text
    lib.sexton_log(_on_log, None)
    return lib, ""


_lib, _unloadable = _load()


def _native() -> ctypes.CDLL:
    if _lib is None:
        raise Error("UNSUPPORTED", _unloadable)
    return _lib


def _check(code: int) -> int:
    if code < 0:
        raise Error(_NAMES.get(code, "FAILED"), _native().sexton_error().decode("utf-8", "replace"))
    return code


def _int32(value: int) -> int:
    # ctypes would cut a number that is none down to one that names another process.
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**31) <= value < 2**31:
        raise Error("BAD_ARGUMENT", f"{value!r} is no PID or signal")
    return value


def _known(code: int, signal: int) -> tuple[Optional[int], Optional[int]]:
    return (code if code >= 0 else None, signal if signal > 0 else None)


# Whoever has a thread that calls Python: a call into an interpreter that is ending would end the process by a signal.
_threaded: weakref.WeakSet[Any] = weakref.WeakSet()


# The threads of the library that have called Python.
_lasting = threading.local()


def _stay() -> None:
    """Has this thread of the library keep what Python knows it by, instead of making that anew for every call.

    RACE: before CPython 3.12, a child that is forked while another thread makes or drops it hangs in `os.fork`.
    """
    if not getattr(_lasting, "stays", False) and hasattr(ctypes, "pythonapi"):
        ctypes.pythonapi.PyGILState_Ensure()
        _lasting.stays = True


@atexit.register
def _stop_all() -> None:
    for each in list(_threaded):
        each.stop()


class Process:
    """A hold on one process, whatever becomes of its number."""

    def __init__(self, handle: int) -> None:
        self._handle = ctypes.c_void_p(handle)

    @classmethod
    def open(cls, pid: int) -> Process:
        """Holds whatever process has this number now."""
        out = ctypes.c_void_p()
        _check(_native().sexton_open(_int32(pid), ctypes.byref(out)))
        return cls(out.value or 0)

    @classmethod
    def reopen(cls, identity: str) -> Process:
        """Holds exactly the process of that identity, or raises `GONE` or `UNPROVEN`."""
        out = ctypes.c_void_p()
        _check(_native().sexton_reopen(identity.encode(), ctypes.byref(out)))
        return cls(out.value or 0)

    @property
    def identity(self) -> str:
        """A text to be stored."""
        buffer = ctypes.create_string_buffer(512)
        _check(_native().sexton_identity(self._handle, buffer, len(buffer)))
        return buffer.value.decode()

    def signal(self, signal: int = _signal.SIGTERM) -> bool:
        """Signals this process and never another; False once it is gone."""
        code = _native().sexton_signal(self._handle, _int32(int(signal)))
        return code != _GONE and _check(code) == 0

    def fileno(self) -> int:
        """The pidfd, readable once it has ended: for `select` and asyncio."""
        return _check(_native().sexton_pidfd(self._handle))

    def close(self) -> None:
        """Lets go of it."""
        handle, self._handle = self._handle, ctypes.c_void_p()
        if handle and _lib is not None:
            _lib.sexton_close(handle)

    __del__ = close

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_exc: Any) -> None:
        self.close()


class Permit:
    """One admitted operation, over when it is left: `with gate.enter("upload"): ...`."""

    def __init__(self, handle: int) -> None:
        self._handle = ctypes.c_void_p(handle)

    def leave(self) -> None:
        """The operation is over. Twice is once."""
        handle, self._handle = self._handle, ctypes.c_void_p()
        if handle and _lib is not None:
            _lib.sexton_permit_leave(handle)

    __del__ = leave

    def __enter__(self) -> Permit:
        return self

    def __exit__(self, *_exc: Any) -> None:
        self.leave()


class Gate:
    """Admits operations until it is drained, for good. Any thread may use it."""

    def __init__(self) -> None:
        self._gate = ctypes.c_void_p(_native().sexton_gate_new())

    def enter(self, kind: str) -> Permit:
        """A permit for one operation of that kind, a word such as `start` or `upload`; raises `DRAINING`."""
        out = ctypes.c_void_p()
        _check(_native().sexton_gate_enter(self._gate, kind.encode(), ctypes.byref(out)))
        return Permit(out.value or 0)

    def begin_drain(self) -> None:
        """Closes it; what is inside goes on."""
        _check(_native().sexton_gate_begin_drain(self._gate))

    @property
    def is_draining(self) -> bool:
        """Nothing is admitted any more."""
        return _check(_native().sexton_gate_is_draining(self._gate)) == 1

    @property
    def is_idle(self) -> bool:
        """Closed and empty, and so it stays."""
        return _check(_native().sexton_gate_is_idle(self._gate)) == 1

    def in_flight(self) -> list[Inside]:
        """Every operation inside, the oldest first."""
        found: list[Inside] = []

        def add(inside: Any, _user: Any) -> None:
            found.append(Inside(inside.contents.kind.decode(), inside.contents.age_ms / 1000))

        _check(_native().sexton_gate_in_flight(self._gate, _OnInside(add), None))
        return found

    def wait_idle(self, timeout: Optional[float] = None) -> bool:
        """Waits until it is closed and empty, at most for `timeout` seconds; whether it is."""
        code = _native().sexton_gate_wait_idle(self._gate, -1 if timeout is None else max(0, int(timeout * 1000)))
        return code != _NOTHING_YET and _check(code) == 0

    def __del__(self) -> None:
        if _lib is not None and getattr(self, "_gate", None):
            _lib.sexton_gate_free(self._gate)


def verify(identity: str) -> str:
    """`running`, `gone`, or `unproven`: a process of that number may or may not be it."""
    code = _native().sexton_verify(identity.encode())
    known = {_GONE: "gone", _UNPROVEN: "unproven"}.get(code)
    return known or ("running" if _check(code) == 0 else "")


class Reaper:
    """Collects the exits of registered children, and of no others.

    With `on_exit` it is called for each, on the reaper's thread; without, they wait for `take`. Never raises on start:
    where there is no reaper, `reason` says why, and `register` raises. Any thread may use and stop it.
    """

    def __init__(self, on_exit: Optional[Callable[[Exit], Any]] = None) -> None:
        self._reaper = ctypes.c_void_p()
        self._on_exit = on_exit if callable(on_exit) else None
        if on_exit is not None and self._on_exit is None:
            _log.warning("reaper: on_exit %r is no function", on_exit)
        # What is to be taken waits here, for nobody may wait inside a library that is given back by another thread.
        self._untaken: deque[Exit] = deque()
        self._news = threading.Condition()
        # RACE: held by whoever uses the library's reaper, and by `stop` when it takes that away.
        self._use = threading.RLock()
        # Kept, for the library calls it.
        self._callback = _OnExit(self._tell)
        self.reason: Optional[str] = None
        try:
            callback = ctypes.cast(self._callback, ctypes.c_void_p)
            _check(_native().sexton_reaper_start(callback, None, ctypes.byref(self._reaper)))
            _threaded.add(self)
        except Error as error:
            self.reason = str(error)
            _log.warning("not reaping: %s", error)

    def _tell(self, exit: Any, _user: Any) -> None:
        _stay()
        told = _exit_of(exit.contents)
        if self._on_exit is None:
            with self._news:
                self._untaken.append(told)
                self._news.notify()
            return
        try:
            self._on_exit(told)
        except Exception:  # noqa: BLE001 - the next exit is told all the same.
            _log.exception("on_exit")

    def _running(self) -> ctypes.c_void_p:
        if not self._reaper:
            raise Error("STOPPED" if self.reason == "stopped" else "UNSUPPORTED", self.reason or "")
        return self._reaper

    def register(self, child: Union[int, Process]) -> None:
        """Takes over a child that nobody has reaped, by number or as held. There is no way back."""
        with self._use:
            if isinstance(child, Process):
                _check(_native().sexton_reaper_register_process(self._running(), child._handle))
            else:
                _check(_native().sexton_reaper_register(self._running(), _int32(child)))

    def take(self, timeout: Optional[float] = 0.0) -> Optional[Exit]:
        """The oldest exit that nobody has taken; None after `timeout` seconds, which None makes endless.

        Raises once the reaper is stopped and all that it told is taken, also where somebody waits here.
        """
        if self._on_exit is not None:
            raise Error("BAD_ARGUMENT", "this reaper has a callback")
        limit = None if timeout is None else min(timeout, threading.TIMEOUT_MAX)
        with self._news:
            self._news.wait_for(lambda: self._untaken or not self._reaper, limit)
            if self._untaken:
                return self._untaken.popleft()
        self._running()
        return None

    def stats(self) -> dict[str, int]:
        """Counts, and what is there now; all 0 where there is no reaper."""
        told = _Stats()
        with self._use:
            if self._reaper:
                _check(_native().sexton_reaper_read_stats(self._reaper, ctypes.byref(told)))
        return {name: getattr(told, name) for name in _STATS}

    def stop(self) -> None:
        """Stops; what is registered stays unreaped."""
        with self._use:
            reaper, self._reaper = self._reaper, ctypes.c_void_p()
            if not reaper or _lib is None:
                return
            self.reason = "stopped"
        # Without the lock: an `on_exit` that runs meanwhile may ask for it, and is waited for.
        _lib.sexton_reaper_stop(reaper)
        with self._news:
            self._news.notify_all()

    __del__ = stop

    def __enter__(self) -> Reaper:
        return self

    def __exit__(self, *_exc: Any) -> None:
        self.stop()


def _exit_of(told: Any) -> Exit:
    return Exit(told.pid, *_known(told.code, told.signal), bool(told.vanished))


def _milliseconds(value: Union[None, int, float, str], name: str, least: int) -> int:
    """Seconds as a number, or `250ms`, `5s`, `10m`, `1h`; what is neither is warned of and is the default."""
    if value is None:
        return _DEFAULT_MS
    text = re.fullmatch(r"([0-9]{1,12})(ms|s|m|h)", value) if isinstance(value, str) else None
    if text:
        millis = int(text[1]) * {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}[text[2]]
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 86_400:
        millis = int(value * 1000)
    else:
        millis = -1
    if least <= millis <= 86_400_000:
        return millis
    _log.warning("sweep: %s %r is no time; using %s ms", name, value, _DEFAULT_MS)
    return _DEFAULT_MS


def _is_set(value: Any) -> bool:
    """True or false, or how an environment says so; off where neither is said."""
    if isinstance(value, (bool, int, str, type(None))):
        if value in (True, "1", "true"):
            return True
        if value in (False, None, "", "0", "false"):
            return False
    _log.warning("sweep: enabled %r is neither True nor False; off", value)
    return False


def _children_with_an_owner() -> list[int]:
    """Children that a Python object will still ask for, however late: `subprocess` and `multiprocessing`.

    `Popen.wait` calls a child that somebody else reaped a success.
    """
    kinds: list[type] = [subprocess.Popen]
    for module in ("multiprocessing.popen_fork", "multiprocessing.popen_forkserver", "multiprocessing.popen_spawn_posix"):
        kinds += [kind for kind in [getattr(sys.modules.get(module), "Popen", None)] if kind]
    owners = [each for each in gc.get_objects() if isinstance(each, tuple(kinds))]
    pids = [getattr(each, "pid", None) for each in owners if getattr(each, "returncode", None) is None]
    return [pid for pid in pids if isinstance(pid, int)]


class Sweep:
    """Reaps zombies of processes that this program did not start, on a thread of its own."""

    def __init__(self, enabled: Any, interval: Any, grace: Any, on_report: Optional[Callable[[list[Zombie]], Any]],
                 reaper: Optional[Reaper]) -> None:
        self._on_report = on_report if callable(on_report) else None
        if on_report is not None and self._on_report is None:
            _log.warning("sweep: on_report %r is no function", on_report)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._reason = _unloadable
        self._thread: Optional[threading.Thread] = None
        self._sweeper = None
        is_enabled = _is_set(enabled)
        interval_ms, grace_ms = _milliseconds(interval, "interval", 10), _milliseconds(grace, "grace", 0)
        if _lib is None:
            if is_enabled:
                _log.warning("not sweeping: %s", self._reason)
            return
        options = _Options(int(is_enabled), interval_ms, grace_ms)
        if reaper is not None and not isinstance(reaper, Reaper):
            _log.warning("sweep: reaper %r is none; sweeping without", reaper)
            reaper = None
        with reaper._use if reaper else contextlib.nullcontext():
            self._sweeper = _lib.sexton_sweeper_new(ctypes.byref(options), reaper._reaper if reaper else None)
        if not self.status()["active"]:
            return
        self._thread = threading.Thread(target=self._run, args=(interval_ms / 1000,), name="sexton-sweep", daemon=True)
        try:
            self._thread.start()
            _threaded.add(self)
        except RuntimeError as error:
            self._reason = f"no thread to be had: {error}"
            _log.warning("not sweeping: %s", self._reason)

    def _run(self, interval: float) -> None:
        failed = False
        while not self._stopping.wait(interval):
            try:
                reaped = self._look()
                failed = False
                if reaped and self._on_report:
                    self._on_report(reaped)
            except Exception:  # noqa: BLE001 - a sweep that failed is told of once, and the next one goes on.
                if not failed:
                    _log.exception("sweep")
                failed = True

    def _look(self) -> list[Zombie]:
        reaped: list[Zombie] = []

        def add(zombie: Any, _user: Any) -> None:
            one = zombie.contents
            reaped.append(Zombie(one.pid, one.name.decode("utf-8", "replace"), *_known(one.code, one.signal)))

        lib, callback = _native(), _OnZombie(add)
        waiting = self.status()["waiting"] > 0
        with self._lock:
            if waiting:
                for pid in _children_with_an_owner():
                    lib.sexton_sweeper_spare(self._sweeper, pid)
            _check(lib.sexton_sweeper_pass(self._sweeper, callback, None))
        return reaped

    def spare(self, pid: int) -> None:
        """Leaves this child to its owner, however long that takes: for those who call `os.fork` themselves."""
        if self._sweeper:
            with self._lock:
                _check(_native().sexton_sweeper_spare(self._sweeper, _int32(pid)))

    def status(self) -> dict[str, Any]:
        """`active`, `reason`, `passes`, `reaped`, `waiting`."""
        if not self._sweeper:
            return {"active": False, "reason": self._reason, "passes": 0, "reaped": 0, "waiting": 0}
        buffer = ctypes.create_string_buffer(4096)
        with self._lock:
            _check(_native().sexton_sweeper_status(self._sweeper, buffer, len(buffer)))
        status: dict[str, Any] = json.loads(buffer.value)
        if self._reason or self._stopping.is_set():
            status.update(active=False, reason=self._reason or "stopped")
        return status

    def stop(self) -> None:
        """Stops, and waits for the look that is being made."""
        self._stopping.set()
        if self._thread and self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()


def sweep(enabled: Any = False, interval: Any = None, grace: Any = None,
          on_report: Optional[Callable[[list[Zombie]], Any]] = None, reaper: Optional[Reaper] = None) -> Sweep:
    """Starts reaping zombies of processes that this program did not start, or says once why not. Never raises.

    What is registered with `reaper` is left to it.
    """
    return Sweep(enabled, interval, grace, on_report, reaper)
