"""A parent that starts a worker, prints the worker's process id, and waits to be killed."""

from __future__ import annotations

import sys
import threading
import time

from parity_lib.engines.worker.client import Worker

folder, root, method = sys.argv[1:]
worker = Worker("victim:Victim", env={"PYTHONPATH": f"{root}:{folder}"})
sys.stdout.write(f"{worker.pid}\n")
sys.stdout.flush()
if method:
    threading.Thread(target=worker.call, args=(method,), daemon=True).start()
time.sleep(600)
