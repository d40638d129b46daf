"""Learner 1 fails in the way named on the command line, at step 5; the job must end with a reason.

usage: failing_learner.py exception|stop|leave STALL_TIMEOUT TOPOLOGY|ssgd
"""

import sys
import time

import problems
import torch

from horovod_dpsgd import algorithms, topology

how, stall_timeout = sys.argv[1], float(sys.argv[2])
us = problems.start(stall_timeout=stall_timeout)
net = problems.model()
graph = None if sys.argv[3] == "ssgd" else topology.create(sys.argv[3], us.size)
make = algorithms.find("dpsgd" if graph else "ssgd")
algorithm = make(torch.optim.SGD(net.parameters(), lr=0.1), net, us, algorithms.Settings(graph))
for step in range(20):
    if us.rank == 1 and step == 5:
        if how == "exception":
            raise ArithmeticError("this learner is meant to fail")
        if how == "stop":
            time.sleep(600)
        if how == "leave":
            algorithm.close()
    algorithm.begin_step()
    algorithm.optimizer.zero_grad()
    problems.loss(net, problems.batch(step, us.rank)).backward()
    algorithm.end_step()
print("trained to the end")
