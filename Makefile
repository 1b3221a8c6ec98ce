# make demo: install into .venv and analyze the bundled tiny checkpoints; make test: install and run the tests
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test thorough lowest lint notebooks docs clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: .venv/installed
	$(BIN)/moe-probe demo -o out/demo

test: .venv/installed
	$(BIN)/python -m pytest -m "not thorough" --numprocesses auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

thorough: .venv/installed # what takes longer: clusters, every argument of everything, every page of the documentation
	$(BIN)/python -m pytest -m thorough --numprocesses auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

CORE := tests/test_files.py tests/test_results.py tests/test_startup.py tests/static tests/families tests/checkpoint tests/texts \
	tests/traces tests/forward tests/plotting tests/test_callbacks.py
lowest: .lowest/installed # the core tests with the lowest versions of every range
	.lowest/bin/python -m pytest -m "not thorough" --numprocesses auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder $(CORE)

# TORCH_INDEX=URL takes torch from an index of builds without CUDA
.lowest/installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .lowest
	.lowest/bin/python -m pip install --quiet --upgrade pip
	.lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	.lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable ".[trace,gguf,pos,test]"
	touch $@

lint: .venv/installed
	$(BIN)/ruff check moe_probe tests ckpt benchmarks docs notebooks hatch_build.py
	$(BIN)/ruff format --check moe_probe tests ckpt benchmarks docs notebooks hatch_build.py README.md CONTRIBUTING.md
	$(BIN)/basedpyright --level error

notebooks: .venv/installed
	$(BIN)/python notebooks/execute.py

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

clean:
	rm -rf .venv .lowest out
