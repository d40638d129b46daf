"""How long steps take, and how fast learners agree, from 2 learners to 4,096: a model, and what it was checked with."""
