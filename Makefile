# make demo : install, then transcribe a conversation with the small models that come with the package, offline
# make demo-models : train these models again, from scratch; goes on where it stopped
# make bench : measure speed and memory beside other packages, in 45 minutes; goes on where it stopped
# make quick : what has to work before anything else, in under a minute, without torch
# make test : install the test extra, fetch real weights, then documentation, lint, types and all tests
# make docs : build the documentation into site/
# make lint : style alone
# make types : types alone
# make weights : fetch the real weights that tests compare
# make tables : write parity.md and the README's table of parity; make test checks them
# Nothing is installed twice; pip is asked again only when pyproject.toml has changed.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
# on macOS plain mlx brings Metal; on Linux the CPU build is chosen
EXTRA  := $(if $(filter Darwin,$(shell uname -s)),,cpu)
WORKERS ?= 2
COMMA  := ,

QUICK  := tests/quick tests/test_house.py tests/test_plainness.py

.PHONY: demo demo-models quick test docs lint types weights tables parity-full bench clean

demo: $(VENV)/.scored
	$(VENV)/bin/mlx_speech demo

# Needs synthesizers: apt-get install espeak-ng libespeak-ng1 flite festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts
demo-models: $(VENV)/.tested
	$(PY) -m demo

# tests/conftest.py, which imports torch, is left out
quick: $(VENV)/.quick
	$(PY) -m pytest --quiet --confcutdir=tests/quick $(QUICK)

# what takes one core, or waits for the network, is done side by side; the tests take all of them
test: $(VENV)/.tested $(VENV)/.documented
	$(MAKE) --jobs=$(WORKERS) docs lint types weights
	$(PY) -m pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/.tested
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.tested
	$(VENV)/bin/basedpyright

weights: $(VENV)/.tested
	$(PY) tests/real_weights.py

docs: $(VENV)/.documented
	DISABLE_MKDOCS_2_WARNING=true NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

tables: weights
	CI=1 $(PY) -m pytest -n $(WORKERS) --dist worksteal --tables tests/test_parity.py tests/test_real_parity.py

parity-full: $(VENV)/.tested
	$(PY) tests/parity_full.py

bench: $(VENV)/.benched
	$(PY) -m benchmarks
	$(PY) -m benchmarks.graph

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml
	$(PY) -m pip install --quiet --editable "$(if $(EXTRA),.[$(EXTRA)],.)"
	touch $@

$(VENV)/.scored: $(VENV)/.installed
	$(PY) -m pip install --quiet --editable ".[$(if $(EXTRA),$(EXTRA)$(COMMA))demo]"
	touch $@

$(VENV)/.quick: $(VENV)/.installed
	$(PY) -m pip install --quiet --editable ".[$(if $(EXTRA),$(EXTRA)$(COMMA))server,quick]"
	touch $@

# torchaudio's Linux wheel on PyPI is linked to CUDA: without its compiled part it imports, and has all that is needed.
# whisperx pins another torch; only the file of pyannote's segmentation model that it carries is read. speakerlab, the
# original of CAM++, asks for a training toolkit; its model needs torch alone.
$(VENV)/.tested: $(VENV)/.installed
	$(PY) -m pip install --quiet --editable ".[$(if $(EXTRA),$(EXTRA)$(COMMA))test]"
	$(PY) -m pip install --quiet --no-deps whisperx==3.8.6 speakerlab==0.0.6
	$(PY) -c "import torchaudio" 2>/dev/null || find $(VENV) -path "*/torchaudio/lib/*.so" -delete
	touch $@

$(VENV)/.documented: $(VENV)/.installed
	$(PY) -m pip install --quiet --editable ".[$(if $(EXTRA),$(EXTRA)$(COMMA))docs]"
	touch $@

$(VENV)/.benched: $(VENV)/.tested
	$(PY) -m pip install --quiet --editable ".[$(if $(EXTRA),$(EXTRA)$(COMMA))test,bench]"
	touch $@

clean:
	rm -rf $(VENV) build site *.egg-info .parity .pytest_cache .ruff_cache
