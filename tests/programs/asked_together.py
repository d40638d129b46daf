"""A signal reaches one learner, and all act on it at the same step, though they are at different ones.

usage: asked_together.py
"""

import os
import signal
import time

import problems

from horovod_dpsgd.training import requests
from horovod_dpsgd.training.requests import Asked, Requests, Rounds

requests.ROUND_SECONDS = 0.2
us = problems.start()
asked = Requests()
heard = []
with asked.listening():
    rounds = Rounds(us, asked)
    for step in range(11, 400):
        time.sleep(1e-3 * (1 + us.rank))  # learners drift apart, as far as the rounds let them
        if us.rank == 1 and step == 60:
            os.kill(os.getpid(), signal.SIGUSR1)
        if us.rank == us.size - 1 and step == 200:
            os.kill(os.getpid(), signal.SIGUSR2)
        answer = rounds.asked(step)
        if answer:
            heard.append((step, answer))
        if answer is Asked.END:
            break
    rounds.close()
everyone = us.gather(heard)
assert all(other == everyone[0] for other in everyone), everyone
(saved_at, first), (ended_at, second) = everyone[0]
assert (first, second) == (Asked.SAVE, Asked.END)
assert 60 <= saved_at < 200 <= ended_at < 399, everyone[0]
assert us.gather(asked.by_signal)[us.size - 1] == "SIGUSR2"
if us.rank == 0:
    print("asked together")
