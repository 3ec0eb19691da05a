# `make demo` and `make test` need nothing done before: they make .venv and install into it what is missing.

PYTHON ?= python3
RUN := .venv/bin/python
SAMPLE := runs/sample
DEMO := runs/demo
# About 7,000 images in float32: four minutes on two cores.
DEMO_RECIPE := --image-size 64 -b 16 -g 1 --lr 0.02 --epochs 7 --decay-epochs 5

.PHONY: demo test test-all lint clean

demo: .venv/installed
	$(RUN) data/sample.py $(SAMPLE)
	$(RUN) classify.py $(SAMPLE)/imagenet $(DEMO_RECIPE) --output $(DEMO) --auto-resume
	$(RUN) classify.py $(SAMPLE)/imagenet $(DEMO_RECIPE) --evaluate --resume $(DEMO)/resnext50_elastic_checkpoint.pth.tar
	@echo "The curves are in $(DEMO)/curves.png, the log in $(DEMO)/log.jsonl; make clean removes both."

test: .venv/installed-dev lint
	$(RUN) -m pytest -m "not slow"

test-all: .venv/installed-dev lint
	$(RUN) -m pytest

lint: .venv/installed-dev
	$(RUN) -m ruff check .

clean:
	rm -rf runs

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt | .venv/bin/python
	$(RUN) -m pip install --quiet -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	touch $@
