"""Becomes a program to which the kernel refuses calls, as an older one or the filter of a sandbox does.

Arguments: what is refused, each the call, the number and value of one argument where only that is refused, and the error
(`clone3 ENOSYS`, `ioctl 1=0xc040ff0b ENOTTY`), or KILL for the end of whoever calls; `--`; the program and its arguments.
"""

import ctypes, errno, os, platform, struct, sys

# On x86-64 and on arm64.
CALLS = {
    "chmod": (90, 53), "clone3": (435, 435), "close_range": (436, 436), "fdatasync": (75, 83), "fstat": (5, 80),
    "fstatfs": (138, 44), "ioctl": (16, 29), "mount": (165, 40), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "open_tree": (428, 428), "openat": (257, 56), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "setpgid": (109, 154),
    "socket": (41, 198), "statx": (332, 291), "waitid": (247, 95),
}
LOAD, EQUAL, RETURN, ALLOW, ERRNO, KILL = 0x20, 0x15, 0x06, 0x7FFF_0000, 0x0005_0000, 0x8000_0000

def step(code, value, if_not=0):
    return struct.pack("HBBI", code, 0, if_not, value)

end = sys.argv.index("--")
steps = []
for refused in sys.argv[1:end]:
    call, *argument, error = refused.split()
    steps += [step(LOAD, 0), step(EQUAL, CALLS[call][platform.machine() == "aarch64"], 2 * len(argument) + 1)]
    for number, value in (one.split("=") for one in argument):
        steps += [step(LOAD, 16 + 8 * int(number)), step(EQUAL, int(value, 0), 1)]
    steps += [step(RETURN, KILL if error == "KILL" else ERRNO | getattr(errno, error))]
code = ctypes.create_string_buffer(b"".join(steps + [step(RETURN, ALLOW)]))

class Filter(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("steps", ctypes.c_void_p)]

libc = ctypes.CDLL(None, use_errno=True)
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Filter(len(steps) + 1, ctypes.addressof(code)))) != 0:
    sys.exit("seccomp: " + os.strerror(ctypes.get_errno()))
os.execv(sys.argv[end + 1], sys.argv[end + 1:])
