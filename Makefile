# The README's commands, what they stand on, and a check of the wheel. `make setup` is idempotent.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

PACKAGE := build/package
OLDER := build/older
OLDER_PACKAGES := diffusers==0.35.2 transformers==4.57.6 tokenizers==0.22.1 huggingface_hub==0.36.0 peft==0.17.1 \
	optimum==2.1.0 optimum-onnx==0.1.0
REFERENCE := build/reference

.PHONY: demo app setup test pytest lint package older site notebooks release

demo: setup
	$(BIN)/scott demo

# Students beside their teachers in the browser; the demo's is made first, where it is not there.
app: $(VENV)/.installed-app runs/demo/card.md
	$(BIN)/scott app

runs/demo/card.md: | $(VENV)/.installed
	$(BIN)/scott demo

$(VENV)/.installed-app: $(VENV)/.installed
	$(INSTALL) --editable '.[app]'
	touch $@

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --editable '.[dev]'
	touch $@

# What the extra `eval` brings, in a folder of its own: PyPI's torchvision, which it stands on, is built for CUDA's torch, and
# beside a CPU's no transformers model would import.
$(REFERENCE)/.installed: $(VENV)/.installed-dev
	$(INSTALL) --no-deps --target $(REFERENCE) torch-fidelity torchvision open_clip_torch ftfy wcwidth
	touch $@

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint pytest

# A file of tests at a time in each of two processes, so that what a file makes once is made once. xdist would begin with
# the files of most tests; tests/conftest.py has the slow ones first, so that none is left at the end.
pytest: $(VENV)/.installed-dev $(REFERENCE)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The documentation site, in build/site.
site: $(VENV)/.installed
	$(INSTALL) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# What the notebooks show, from their scripts.
notebooks: $(VENV)/.installed-dev
	$(INSTALL) --editable '.[notebooks]'
	cd notebooks && ../$(BIN)/jupytext --quiet --to ipynb --execute *.py
	cd notebooks && ../$(BIN)/python -c "$$ONLY_RESULTS" *.ipynb

# The wheel in an empty environment, without extras and away from the sources: every module imports, the demo runs, and
# its student draws.
package:
	rm -rf $(PACKAGE)
	$(PYTHON) -m venv $(PACKAGE)/venv
	$(PACKAGE)/venv/bin/pip wheel --quiet --no-deps --wheel-dir $(PACKAGE) .
	$(PACKAGE)/venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PACKAGE)/*.whl
	cd $(PACKAGE) && venv/bin/python -c "$$IMPORT_ALL"
	cd $(PACKAGE) && venv/bin/scott demo --max-steps 2 --samples 10
	cd $(PACKAGE) && venv/bin/scott sample runs/demo --prompts "a small green apple" --steps 2

# Checks, builds and tags the version that src/scott/__init__.py has; CONTRIBUTING.md has what goes before and after.
release: VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/scott/__init__.py)
release:
	test -z "$$(git status --porcelain)" || { echo "the tree has changes; commit them"; exit 2; }
	grep -q '^## $(VERSION) ' CHANGELOG.md || { echo "CHANGELOG.md has no section '## $(VERSION) (date)'"; exit 2; }
	! git rev-parse --quiet --verify v$(VERSION) || { echo "v$(VERSION) is tagged already"; exit 2; }
	bash .ci/run
	rm -rf dist
	$(INSTALL) build twine
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	git tag --annotate v$(VERSION) --message 'scott $(VERSION)'

# Every export, opened by an older diffusers, transformers and peft, and by optimum: those in a folder of their own, which
# comes before the environment's; torch and the rest are the environment's.
older: $(OLDER)/.installed
	OLDER=$(OLDER) OMP_NUM_THREADS=1 $(BIN)/pytest tests/export/test_older.py

$(OLDER)/.installed: Makefile $(VENV)/.installed-dev
	rm -rf $(OLDER)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(OLDER) $(OLDER_PACKAGES)
	touch $@

# Progress bars and warnings, which name the machine's paths, are no results.
define ONLY_RESULTS
import sys, nbformat
for file in sys.argv[1:]:
    notebook = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, file)
endef
export ONLY_RESULTS

define IMPORT_ALL
import importlib, pkgutil, scott
names = [module.name for module in pkgutil.walk_packages(scott.__path__, "scott.")]
names = [name for name in names if not name.startswith("scott.app.")]  # which need the extra `app`
for name in names:
    importlib.import_module(name)
print(len(names), "modules import")
endef
export IMPORT_ALL
