# The two commands for a fresh machine with Python 3.11 and pip:
#   make demo    sets up, fetches the data, trains jobs/quickstart.yaml, says where to look
#   make test    sets up and runs the tests
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# A CPU that waits should sleep, not spin: with the default a busy machine is many times slower.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test test-fast check audit sbom wheel generate docs setup lock upgrade clean

setup: $(VENV)/.installed

# Exactly what the lock lists, with its hashes. uv is used where it is there, else pip brings it.
# Modules are compiled once here: where PYTHONDONTWRITEBYTECODE is set, or the environment cannot be
# written, each process of a job would compile torch, MLflow and Ray for itself, 15 s of CPU.
$(VENV)/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $$(command -v $(PYTHON) || command -v python3) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r requirements.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Trains, then colours the drawings that were held out with the registered model.
demo: export PATH := $(CURDIR)/$(BIN):$(PATH)
demo: setup
	jobs/quickstart.yaml
	$(BIN)/orchestrator data export data/openmoji-64/validation demo/drawings
	$(BIN)/orchestrator sample pix2pix-quickstart@candidate --input demo/drawings --output demo/coloured
	@echo
	@echo "Look at demo/coloured/grid.png: drawings that the training never saw, and what the model"
	@echo "makes of them. The curves and the pictures of every epoch:"
	@echo "  $(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db    then http://127.0.0.1:5000"

# Where the tests with clusters are: to look for them in all files takes half a minute.
RAY_TESTS := tests/cluster tests/deploy tests/local_stack tests/cli/test_canaries.py tests/test_readme.py

# First the tests with clusters, which wait more than they compute, then all others.
test: setup
	$(BIN)/python -m pytest -m ray $(RAY_TESTS) -n 2 --dist loadfile --no-loadscope-reorder --durations=25
	$(BIN)/python -m pytest -m "not ray" -n 2 --dist loadfile --no-loadscope-reorder --durations=25

# The tests that start no cluster and no server and are not slow: 3 minutes on two cores.
test-fast: setup
	$(BIN)/python -m pytest -m "not ray and not server and not slow" -n 2 --dist loadfile

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd tests && $(abspath $(BIN))/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py tests/test_language.py
	$(BIN)/python docs/generate.py --check

# Known vulnerabilities of what the lock lists, by pip-audit, which uv fetches for this alone. It needs
# PyPI, so no other target depends on it; without an answer it says so and does not fail. pip-audit
# itself passes over packages that an index has no answer for, as mirrors have, and finds nothing.
audit: setup
	@answer=$$($(BIN)/uvx --quiet pip-audit --disable-pip --require-hashes -r requirements.lock 2>&1); \
	code=$$?; unchecked=$$(echo "$$answer" | grep -c "could not be audited"); \
	case "$$answer" in \
		*Found*"known vulnerabilit"*) echo "$$answer"; exit 1 ;; \
	esac; \
	if [ $$code != 0 ]; then \
		echo "$$answer" | tail -n 1; echo "audit: no answer, so nothing was checked"; \
	elif [ $$unchecked != 0 ]; then \
		echo "audit: the index has no answer for $$unchecked packages; they were not checked"; \
	else echo "$$answer"; fi

# What the lock lists, with versions and hashes, as a CycloneDX document for scanners. By
# cyclonedx-bom of OWASP's CycloneDX project, which uv fetches for this alone.
sbom: setup
	mkdir -p dist
	$(BIN)/uvx --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py requirements --pyproject pyproject.toml \
		--output-reproducible --sv 1.6 --of JSON -o dist/sbom.cdx.json requirements.lock

# The wheel in dist/, and what it was tested with beside it.
wheel: sbom
	$(BIN)/uv build --quiet --wheel --no-build-isolation --python $(BIN)/python --out-dir dist

# After a change of a model, a job or the job file's keys: writes jobs/schema.json, the models' pages
# in docs/models/ and the table of models in README.md.
generate: setup
	$(BIN)/python docs/generate.py

# After a change of the dependencies in pyproject.toml: `lock` keeps the versions that are pinned,
# `upgrade` takes the newest of each.
lock upgrade: setup
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-annotate --no-header -q \
		$(if $(filter upgrade,$@),--upgrade) -o requirements.lock

# The documentation site, in site/. Links to files outside docs/ lead to REPOSITORY_URL.
# No --quiet: it would hide warnings from --strict too.
docs: export NO_MKDOCS_2_WARNING := 1
docs: setup
	$(BIN)/mkdocs build --strict

clean:
	rm -rf dist $(VENV) .mypy_cache .ruff_cache .pytest_cache site
