"""Loaded by every worker process on this machine before it does anything: it prints nothing. It knows no worker.

What goes wrong in a worker comes back as a result; the terminal is the client's.
"""

import logging

logging.getLogger().addHandler(logging.NullHandler())
logging.getLogger("distributed").setLevel(logging.CRITICAL + 1)
