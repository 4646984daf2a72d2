# Every target goes through `setup`, which makes .venv and does nothing when nothing changed.
# PYTHON is the interpreter that .venv is made from; ARGS are passed on to the command.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: demo test test-slow fuzz mutants compare bench lint types setup

demo: setup
	$(PY) train_net.py --config-file configs/Shapes-Detection/map.yaml $(ARGS) OUTPUT_DIR output/demo

# Two processes; ARGS="-n 0" runs them in one. Tensors are small: more threads only wait.
test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

# A file stays in one process, since its slow tests share what takes them long.
test-slow: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile -m slow $(ARGS)

# New cases each time, for the night; what fails is printed with the line that repeats it.
fuzz: setup
	$(PY) -m pytest tests/fuzz --hypothesis-profile=nightly $(ARGS)

# Hours for all layers: ARGS="nms.py steps/ --per-file 20" takes files, and a sample of each.
mutants: setup
	$(PY) -m pip install --quiet --editable '.[mutants]' --constraint constraints.txt
	OMP_NUM_THREADS=1 $(PY) tools/mutants.py $(ARGS)

compare: setup
	$(PY) -m experiments.compare $(ARGS)

bench: setup
	$(PY) -m benchmarks.run_all $(ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: setup
	$(PY) -m mypy

setup:
	@$(PYTHON) tools/setup_env.py
