PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := build/peers/.ready

.PHONY: demo test test-backends check fix bench bench-optimizers bench-quantization bench-backends coverage torture docs clean

demo: $(READY)  ## set up, then run the whole job on CIFAR-10 if it is at hand, else on the embedded digits
	$(BIN)/python scripts/demo.py

test: $(READY)  ## set up, then run the tests
	$(BIN)/pytest -n auto --dist worksteal

test-backends: $(READY)  ## make the environments of the runtimes that need one, and run the backends' tests in them
	PENSTOCK_ENVIRONMENTS=build/environments $(BIN)/penstock env add iree
	PENSTOCK_ENVIRONMENTS=build/environments $(BIN)/penstock env add tvm
	PENSTOCK_ENVIRONMENTS=build/environments $(BIN)/penstock env add onnxruntime-openvino
	PENSTOCK_ENVIRONMENTS=build/environments $(BIN)/penstock env add tflite-micro
	PENSTOCK_ENVIRONMENTS=build/environments $(BIN)/penstock env add onnxruntime-web
	PENSTOCK_TEST_LARGE=1 PENSTOCK_REQUIRE_BACKENDS=1 PENSTOCK_TEST_ENVIRONMENTS=$(CURDIR)/build/environments $(BIN)/pytest tests/unit/test_backend_conformance.py \
		tests/unit/test_environment.py tests/unit/test_far.py tests/unit/browser tests/unit/test_conformance.py \
		tests/unit/test_verifying.py tests/e2e/test_reference_network.py

check: $(READY)  ## lint, format, types, docs
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/python scripts/write_command_reference.py --check

fix: $(READY)  ## mend what can be mended by machine
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: $(READY)  ## measure what the docs claim
	$(BIN)/python benchmarks/reference_network.py

bench-optimizers: $(READY) $(PEERS)  ## hold the graph optimizer against its peers, on all models and nets
	$(BIN)/python benchmarks/raw_exports.py --page docs/performance.md
	$(BIN)/python benchmarks/large_models.py --page docs/performance.md
	$(BIN)/python benchmarks/optimizers.py --page docs/performance.md

bench-quantization: $(READY) $(PEERS)  ## hold the quantizer against its peers: noise, accuracy, latency, costs
	$(BIN)/python benchmarks/quantization.py --page docs/performance.md

bench-backends: $(READY)  ## every backend that can run here, side by side on the reference net
	$(BIN)/python benchmarks/backends.py --page docs/performance.md

coverage: $(READY)  ## run the standard's node tests on every backend that can run here, and write down what came of it
	$(BIN)/python scripts/measure_coverage.py

torture: $(READY)  ## interrupt builds 300 times by chance and after each write, and compare what comes out
	$(BIN)/python scripts/torture.py --kills 300
	$(BIN)/python scripts/torture.py --each-write

docs: $(READY)  ## write the command reference anew
	$(BIN)/python scripts/write_command_reference.py

clean:  ## remove what make made
	rm -rf $(VENV) build demo-out .mypy_cache .ruff_cache .pytest_cache

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $(READY)

$(PEERS): benchmarks/peers.txt
	$(PYTHON) -m venv build/peers
	build/peers/bin/pip install -q --disable-pip-version-check -r benchmarks/peers.txt
	@touch $(PEERS)
