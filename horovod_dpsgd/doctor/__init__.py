"""`python -m horovod_dpsgd.doctor`: what this machine's MPI can and cannot do, and the flags to use."""
