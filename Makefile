# make run    draw the sample, execute the notebooks on it, score the results
# make test   check the code's style and run the tests
# make data   fetch the challenge's pictures into data/isic2017, and check them
# DERMA_DATA=data/isic2017 make run    the same on the challenge's pictures

PYTHON ?= python3
BIN := .venv/bin
DERMA_DATA ?= data/sample
OUT := models/$(notdir $(DERMA_DATA:/=))
NOTEBOOKS := skin_lesion_classification.ipynb dataset_structure_visualization.ipynb

.PHONY: run data test test-lowest notebooks lock clean

run: .venv/installed
	@for notebook in $(NOTEBOOKS); do \
		echo "Executing $$notebook on $(DERMA_DATA)$(if $(filter data/sample,$(DERMA_DATA)), (about four minutes on two cores))"; \
		DERMA_RESULTS=$(OUT)/results.csv $(BIN)/python -m derma.execute $$notebook $(OUT)/$$notebook || exit $$?; \
	done
	$(if $(filter skin_lesion%,$(NOTEBOOKS)),$(BIN)/python get_results.py $(OUT)/results.csv \
		--figures images/$(notdir $(DERMA_DATA:/=))/scores)
	@echo "The executed notebooks and their results are in $(OUT)/."

# FETCH: options for derma.fetch, such as FETCH='--source udacity'
data: .venv/installed
	$(BIN)/python -m derma.fetch $(FETCH)
	$(if $(filter --dry-run --extra,$(FETCH)),,$(BIN)/python -m derma.check data/isic2017)

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

# Executes the notebooks in place on the drawn sample: what is committed. The published results.csv stays as it is.
notebooks: .venv/installed
	rm -rf data/sample
	for notebook in $(NOTEBOOKS); do \
		env -i PATH="$$PATH" HOME="$$HOME" DERMA_RESULTS=models/sample/results.csv \
			$(BIN)/python -m derma.execute $$notebook $$notebook || exit $$?; \
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
	@touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	@touch $@

clean:
	rm -rf .venv .venv-lowest data/sample models/sample images/sample images/scores
