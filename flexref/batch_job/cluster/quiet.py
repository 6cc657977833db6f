"""Loaded by every worker process on this machine before it does anything: it prints nothing. It knows no worker.

What goes wrong in a worker comes back as a result; the terminal, and Ctrl-C there, is the client's.
"""

import logging
import signal
import threading

if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
logging.getLogger().addHandler(logging.NullHandler())
logging.getLogger("distributed").setLevel(logging.CRITICAL + 1)
