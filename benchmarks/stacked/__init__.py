"""Many runs at once on one device: for maps of where algorithms part, before learners of their own confirm them.

Here all learners of all runs are one stacked network in one process: its every operation is done for all of them
together (torch.func.vmap), so that runs of small models cost hardly more than one of them. Recipes, tasks, samples,
starts, pairings and schedules are those that real learners would have; only what is communicated is not.
"""
