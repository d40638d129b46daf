"""Prints one line a learner: who it is, where, and what Horovod's all-reduce gives it. For test_launchers.py."""

import sys

import horovod.torch as hvd
import torch
from mpi4py import MPI

hvd.init(comm=MPI.COMM_WORLD)
node = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
total = int(hvd.allreduce(torch.tensor([float(hvd.rank())]), op=hvd.Sum).item())
line = f"learner {hvd.rank()} of {hvd.size()} on {MPI.Get_processor_name()} with {node.size} there, sum {total}"
sys.stdout.write(f"{line}, {sys.prefix}\n")
