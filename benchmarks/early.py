"""What signals do until the training loop listens to them, and after it: import this before anything that takes time.

A job that is asked to save has nothing to save yet, and one that is asked to end ends as if it had.
"""

import os
import signal

signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.signal(signal.SIGUSR2, lambda _number, _frame: os._exit(143))
