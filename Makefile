# make run        draw the sample, execute the notebooks on it, score the results
# make test       check the style and run the tests
# make predict IMAGES=folder    apply the trained network to images: files, folders, or a folder of class folders
# make data       fetch the challenge's images into data/isic2017, and check them
# make published  two stages: train on data/extra, then on data/isic2017, average, score; 3 h 20 min on two cores
# DERMA_DATA=data/isic2017 make run    the notebooks on the challenge's images

PYTHON ?= python3
BIN := .venv/bin
export DERMA_DATA ?= data/sample
DATA := $(notdir $(DERMA_DATA:/=))
NOTEBOOKS := skin_lesion_classification.ipynb dataset_structure_visualization.ipynb

# A run's folder is named by its data and its model, as these variables give them.
MODEL := $(firstword $(subst ., ,$(or $(DERMA_MODEL),resnet50)))
NAME := $(DATA)$(if $(filter sample-,$(DATA)-$(DERMA_MODEL)),,-$(MODEL))
RUN := $(or $(DERMA_RESULTS),models/$(NAME)$(if $(filter 1 t% T% y% Y% on On ON,$(DERMA_FROZEN)),-frozen))

.PHONY: run predict published data test test-lowest notebooks lock clean

run: .venv/installed
	@for notebook in $(NOTEBOOKS); do \
		echo "Executing $$notebook on $(DERMA_DATA)"; \
		DERMA_RESULTS=$(RUN) DERMA_CLASSIFIER=$(or $(DERMA_CLASSIFIER),$(RUN)) $(BIN)/python -m derma.execute $$notebook $(RUN)/$$notebook || exit $$?; \
	done
	$(if $(filter skin_lesion%,$(NOTEBOOKS)),$(BIN)/python get_results.py $(RUN)/results.csv --figures $(RUN)/scores)
	@echo "Executed: $(NOTEBOOKS:%=$(RUN)/%)$(if $(filter dataset%,$(NOTEBOOKS)),; further files: models/$(DATA)-autoencoder/)"

# Of the run that DERMA_DATA, DERMA_MODEL and DERMA_FROZEN name. OPTIONS: for derma.predict, such as --explain explained
predict: .venv/installed
	$(BIN)/python -m derma.predict $(RUN) $(IMAGES) $(OPTIONS)

# Two stages for each of BACKBONES: on EXTRA, further images in class folders as 'make data FETCH=--extra' fetches them,
# then on DERMA_DATA, the official ones. The first backbone is MAIN: its networks are fine-tuned at a larger size, which
# gains for keratosis, and it has a head on the first stage's network at half the size. Every other backbone has a head
# at the full size. In the average, the networks weigh twice, as they score higher than a head.
# 'make -j4 published' trains several networks at once on a GPU. Finished parts are kept, so other settings need another
# PUBLISHED; interrupted ones are resumed. WEIGHTS: a folder of <model>.safetensors, where nothing can be downloaded.
# docs/speed.md has the times, and smaller recipes.
EXTRA ?= data/extra
BACKBONES ?= tf_efficientnetv2_b0 resnet50.tv_in1k
SIZE ?= 192
EPOCHS ?= 15
PUBLISHED ?= models/published
STAGE = $(MAKE) run NOTEBOOKS=skin_lesion_classification.ipynb DERMA_EVALUATE=test DERMA_FOLDS=5 DERMA_MODEL=$* \
	DERMA_RESULTS=$(@D) DERMA_DATA=$(if $(filter sample,$(DATA)),data/isic2017,$(DERMA_DATA))
SECOND = $(STAGE) DERMA_WEIGHTS=$(PUBLISHED)/$*-first
MAIN := $(firstword $(BACKBONES))
PARTS := $(addprefix $(PUBLISHED)/,$(MAIN)-fine-tuned $(MAIN)-fine-tuned $(MAIN)-half-size $(patsubst %,%-frozen,$(filter-out $(MAIN),$(BACKBONES))))
published: $(PARTS:%=%/metrics.json)
	$(BIN)/python get_results.py --ensemble $(PARTS:%=%/results.csv) --out $(PUBLISHED)/results.csv --figures $(PUBLISHED)/scores

# The notebook's last cell writes metrics.json. '+': the runs share the jobs of -j.
$(PUBLISHED)/%-first/metrics.json: | .venv/installed
	+$(STAGE) DERMA_WEIGHTS=$(if $(WEIGHTS),$(WEIGHTS)/$(basename $*).safetensors,imagenet) DERMA_IMAGE_SIZE=$(SIZE) DERMA_DATA=$(EXTRA) \
		DERMA_FOLDS=0 DERMA_TTA=false DERMA_FROZEN=false DERMA_EPOCHS=$(EPOCHS) DERMA_LR_BACKBONE=3e-4 DERMA_LR_HEAD=1e-3

$(PUBLISHED)/%-frozen/metrics.json: $(PUBLISHED)/%-first/metrics.json
	+$(SECOND) DERMA_IMAGE_SIZE=$(SIZE) DERMA_FROZEN=true

$(PUBLISHED)/%-half-size/metrics.json: $(PUBLISHED)/%-first/metrics.json
	+$(SECOND) DERMA_IMAGE_SIZE=$$(($(SIZE) / 2)) DERMA_FROZEN=true

# Epochs and rates are the notebook's own: higher rates score lower.
$(PUBLISHED)/%-fine-tuned/metrics.json: $(PUBLISHED)/%-first/metrics.json
	+$(SECOND) DERMA_IMAGE_SIZE=$$(($(SIZE) * 7 / 6)) DERMA_FROZEN=false

.SECONDARY: $(BACKBONES:%=$(PUBLISHED)/%-first/metrics.json)  # make would delete them at the end

# FETCH: options for derma.fetch, such as FETCH='--source udacity'
data: .venv/installed
	$(BIN)/python -m derma.fetch $(FETCH)
	$(if $(filter --dry-run --extra,$(FETCH)),,$(BIN)/python -m derma.check data/isic2017)

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

# Executes the notebooks in place on the drawn sample: what is committed.
notebooks: .venv/installed
	rm -rf data/sample models/sample models/sample-autoencoder
	for notebook in $(NOTEBOOKS); do \
		env -i PATH="$$PATH" HOME="$$HOME" $(BIN)/python -m derma.execute $$notebook $$notebook || exit $$?; \
	done

# Pins what is installed in .venv now, which is what the tests ran with.
lock: .venv/installed-dev
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python -m pip freeze > .venv/tested.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11.7 --generate-hashes --no-header --no-annotate \
		--constraint .venv/tested.txt --output-file requirements.lock requirements-dev.txt

# The tests again, with the lowest versions that requirements.txt allows.
test-lowest: .venv/installed-dev
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-lowest
	$(BIN)/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct -r requirements-dev.txt
	.venv-lowest/bin/python -m pytest

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with 'make PYTHON=python3.12 ...'."; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt | .venv/bin/python
	@echo "Installing the requirements into .venv (several GB and a few minutes, once)"
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@# Notebooks find derma from whatever folder they are started in.
	@echo "$(CURDIR)" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/derma.pth"
	@touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	@touch $@

clean:
	rm -rf .venv .venv-lowest data/sample models/sample models/sample-autoencoder
