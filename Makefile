# Each command is a line or two; the programs they call do the work. `make` alone lists them.
# PYTHON=python3.13 names another Python; ARGS="..." goes to the program.
# TORCH=cpu takes PyTorch's CPU-only wheels (a matter of Linux). It is remembered in .venv: an update then brings no CUDA either.

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
TORCH ?= $(shell cat .venv/chosen-torch 2>/dev/null)
CPU_WHEELS = $(if $(filter cpu,$(TORCH)),--extra-index-url https://download.pytorch.org/whl/cpu)
COURSE = .venv/bin/python
INSTALL = $(COURSE) -m pip install --disable-pip-version-check -c $(CONSTRAINTS) $(CPU_WHEELS)

.PHONY: help lab fresh test test-browser build check lock train bench claim measure time-machine

help:
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 20

lab: .venv/installed  ## open the course in JupyterLab, on your own copies in my_work/
	@$(COURSE) -m course_utils.lab $(if $(ARGS),-- $(ARGS))

fresh: .venv/installed  ## LESSON=03: set your copy of a lesson aside and take a new one
	@$(COURSE) -m course_utils.lab --fresh "$(LESSON)"

test: .venv/installed-test  ## run every test and every notebook
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(COURSE) -m pytest -n logical --dist worksteal $(ARGS)

test-browser: .venv/installed-browser  ## work through a lesson and an exercise in a headless Chromium
	$(COURSE) -m pytest tests/browser/test_browser.py $(ARGS)

build: .venv/installed-test  ## make notebooks/, exercises/ and solutions/ from source/
	$(COURSE) -m tools.build $(ARGS)

check: .venv/installed-test  ## compare what is built with its source, and lint
	$(COURSE) -m ruff check .
	$(COURSE) -m tools.build --check

lock: .venv/installed  ## choose the newest versions inside the bounds of pyproject.toml: constraints.txt
	$(COURSE) -m tools.lock

train: .venv/installed-test  ## train the bundled model anew (an hour and more)
	$(COURSE) -m tools.train_abacus $(ARGS)

bench: .venv/installed-test  ## race the quantizer against bitsandbytes and a plain copy
	$(COURSE) -m tools.bench $(ARGS)

claim: .venv/installed-test  ## ID=memory-87.5: run the evidence of one claim; without ID: list the ledger
	@$(COURSE) -m tools.claims $(if $(ID),"$(ID)") $(ARGS)

measure: .venv/installed  ## PART=layers: time, memory and quality on this machine, to my_work/measurements
	@$(COURSE) -m tools.measure $(if $(PART),--part "$(PART)") $(if $(OUT),--out "$(OUT)") $(ARGS)

time-machine: .venv/installed-test  ## run lesson 11's programs under old versions, which it installs (15 GB) and keeps in build/
	$(COURSE) -m tools.time_machine $(ARGS)

# The set-up. Each file says that its step is done; it is done again when the list of dependencies changes.

ifeq ($(TORCH),cpu)
DOWNLOAD = Setting up Four Bits in .venv. To download: about 0.4 GB, with PyTorch's CPU-only wheels (TORCH=cpu).
else
define DOWNLOAD
Setting up Four Bits in .venv. To download: about 0.4 GB, and on Linux about 2.9 GB, since the default torch there brings CUDA along.
On Linux without an NVIDIA GPU, stop now (Ctrl-C) and add TORCH=cpu (as in: make lab TORCH=cpu) for PyTorch's CPU-only wheels: about 0.4 GB.
endef
endif
export DOWNLOAD

TORCH_IS_HERE = from importlib.metadata import version; assert 'torch==' + version('torch').split('+')[0] in open('$(CONSTRAINTS)').read().splitlines()
TOO_OLD = Four Bits needs Python 3.11 or newer; $(PYTHON) is %s. Name a newer one, as in: make lab PYTHON=python3.13
OLD_VENV = Four Bits needs Python 3.11 or newer; the folder .venv was made with Python %s. Delete that folder and give the command again

.venv/installed: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('$(TOO_OLD)' % sys.version.split()[0])"
	@$(COURSE) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@$(COURSE) -c "import sys; sys.version_info >= (3, 11) or sys.exit('$(OLD_VENV)' % sys.version.split()[0])"
	@echo "$(TORCH)" > .venv/chosen-torch
	@$(COURSE) -c "$(TORCH_IS_HERE)" 2>/dev/null || echo "$$DOWNLOAD"
	$(INSTALL) -e .
	@touch $@

.venv/installed-test: .venv/installed
	$(INSTALL) -e ".[test]"
	@touch $@

.venv/installed-browser: .venv/installed-test
	$(INSTALL) -e ".[test,browser]"
	@touch $@
