"""Starts the driver and the context of the first device, beside what a command loads; it says nothing of what fails.

Both take a third of a second in which a processor has little to do. The port takes the same context, whether it is
there by then or not, and says itself what is missing.
"""

import ctypes

DRIVER = "libcuda.so.1"
"""The driver's library."""


def begin() -> None:
    """Called on a thread of its own."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if not driver.cuInit(0) and not driver.cuDeviceGet(ctypes.byref(device), 0):
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
