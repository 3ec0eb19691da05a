# `make demo` and `make test` need nothing done before: they make .venv and install into it what is missing.

PYTHON ?= python3
RUN := .venv/bin/python
SAMPLE := runs/sample
DEMO := runs/demo
MINIATURE := runs/miniature
# About 7,000 images in float32: four minutes on two cores.
IMAGENET_RECIPE := --image-size 64 -b 16 -g 1 --lr 0.02 --epochs 7 --decay-epochs 5 -p 20

CLASSIFIER := $(DEMO)/imagenet/resnext50_elastic_checkpoint.pth.tar
# About 3,200 images, larger: three to four more minutes.
COCO_RECIPE := --image-size 96 -b 8 -g 1 --lr 0.01 --epochs 8 --decay-epochs 6 -p 20
# 800 crops at a quarter of the classifier's stride: two minutes. So few updates leave ASPP's running statistics, of
# momentum 0.0003, as they began; frozen batch norms train with what the test will use.
VOC := --data $(SAMPLE)/VOCdevkit --exp sample --epochs 2 -b 8 --output $(DEMO)/voc
VOC_RECIPE := --crop-size 97 --base-lr 0.002 --freeze-bn --no-checkpoint-activations

.PHONY: demo miniature benchmark test test-all lint clean

demo: .venv/installed
	$(RUN) data/sample.py $(SAMPLE)
	$(RUN) classify.py $(SAMPLE)/imagenet $(IMAGENET_RECIPE) --output $(DEMO)/imagenet --auto-resume
	$(RUN) classify.py $(SAMPLE)/imagenet $(IMAGENET_RECIPE) --evaluate --resume $(CLASSIFIER)
	$(RUN) multilabel_classify.py $(SAMPLE)/coco $(COCO_RECIPE) --resume $(CLASSIFIER) --output $(DEMO)/coco --auto-resume
	$(RUN) -m tools.prediction_sheet $(DEMO)/coco/coco_resnext50_elastic_checkpoint.pth.tar $(SAMPLE)/coco \
		$(DEMO)/coco/predictions.png --image-size 96
	$(RUN) segment.py $(VOC) --train $(VOC_RECIPE) --resume $(CLASSIFIER) --auto-resume
	$(RUN) segment.py $(VOC) --crop-size 257 --overlay
	@echo "Look at curves.png in $(DEMO)/imagenet, coco and voc, at coco/predictions.png and at voc/overlays there;"
	@echo "make clean removes the demo."

# Base against Elastic, and controls, five seeds: hours. Stopped and called again it goes on.
miniature: .venv/installed
	$(RUN) -m tools.miniature --output $(MINIATURE)

# A short set: the default net tested and trained, and the loaders.
benchmark: .venv/installed
	$(RUN) -m tools.benchmark --rounds 3
	$(RUN) -m tools.benchmark --rounds 3 --train
	$(RUN) -m tools.benchmark --rounds 3 --input

# Every promise once, on all cores.
test: .venv/installed-dev lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist worksteal -m "not slow"

# With every size, layout, export and number of processes.
test-all: .venv/installed-dev lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist worksteal

lint: .venv/installed-dev
	$(RUN) -m ruff check .

clean:
	rm -rf $(SAMPLE) $(DEMO)

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }  # Debian: apt install python3-venv

.venv/installed: requirements.txt | .venv/bin/python
	$(RUN) -m pip install --quiet -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	touch $@
