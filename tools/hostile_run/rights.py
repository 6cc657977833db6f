"""Makes limits of processes hold for a process of root's, which may still read what only root may; Linux alone."""

import ctypes
import os

PR_CAPBSET_DROP = 24
CAPABILITY_VERSION = 0x20080522
ABOVE_LIMITS = (21, 24)
"""CAP_SYS_ADMIN and CAP_SYS_RESOURCE: who has them is under no limit of processes."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("process", ctypes.c_int))


class _Set(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def become_limited(user: int) -> None:
    """Count as a process of `user` from here on, for this process and all that it becomes."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(CAPABILITY_VERSION, 0), (_Set * 2)()
    for capability in ABOVE_LIMITS:
        _check(libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))
    os.setresuid(user, 0, 0)  # processes are counted by the real user, files are opened by the effective one
    _check(libc.capget(ctypes.byref(header), sets))
    for capability in ABOVE_LIMITS:
        keep = ~(1 << capability % 32)
        sets[capability // 32].effective &= keep
        sets[capability // 32].permitted &= keep
    _check(libc.capset(ctypes.byref(header), sets))


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
