"""How large a learning rate, or a batch, a training takes under SSGD and under DPSGD: found by short runs of it."""
