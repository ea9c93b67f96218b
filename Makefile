# Everything that is needed beyond Rust, Python with venv, a C linker and make is installed into .venv and target; but
# fuzzing needs a C++ compiler too.

.DEFAULT_GOAL := help
.PHONY: help demo test test-rust test-python fuzz fuzz-replay lint lint-rust lint-python lint-dependencies build bench compat clean

PYTHON ?= python3
VENV := .venv
BIN := $(abspath $(VENV))/bin
PY := crates/ray-py
FUZZ_SECONDS ?= 20
FUZZ_TARGETS := frame link_message peer_message plain_value value
CARGO_FUZZ := target/cargo-fuzz-0.13.2
# The address sanitizer is in the stable compiler, but it is not to be had without a word. Leaks are looked for with
# ptrace, which many containers forbid; the targets meter the memory that is taken themselves.
FUZZ := RUSTC_BOOTSTRAP=1 ASAN_OPTIONS=detect_leaks=0 $(CARGO_FUZZ)/bin/cargo-fuzz fuzz
# The extension module is built for, and linked against, the interpreter of the virtual environment.
export PYO3_PYTHON := $(BIN)/python
export VIRTUAL_ENV := $(abspath $(VENV))
# rustup puts cargo there, also where the shell does not know yet.
export PATH := $(BIN):$(HOME)/.cargo/bin:$(PATH)

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/ready ## Build with optimisation and count the words of the standard library on all processors
	maturin develop --release --quiet -m $(PY)/Cargo.toml
	python examples/word_count.py

test: test-rust test-python ## Run all tests

test-rust: ## Run the tests of the Rust crates
	cargo test

test-python: build $(VENV)/test-ready ## Run the tests of the Python package, with real processes
	python -m pytest $(PY)

fuzz: $(CARGO_FUZZ)/bin/cargo-fuzz ## Fuzz what decodes bytes of other processes, FUZZ_SECONDS (20) for each target
	$(FUZZ) build --codegen-units 16
	for target in $(FUZZ_TARGETS); do \
		mkdir -p fuzz/target/corpus/$$target; \
		$(FUZZ) run --codegen-units 16 $$target fuzz/target/corpus/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 -verbosity=0 || exit 1; \
	done

fuzz-replay: $(CARGO_FUZZ)/bin/cargo-fuzz ## Run a fuzz target on the file INPUT once, with a backtrace
	RUST_BACKTRACE=1 $(FUZZ) run --codegen-units 16 $(FUZZ_TARGETS) $(INPUT)

build: $(VENV)/ready ## Build the Python package for development into .venv
	maturin develop --quiet -m $(PY)/Cargo.toml

bench: $(VENV)/ready ## Build with optimisation and measure: machines of the core first, then tasks, calls and objects
	maturin develop --release --quiet -m $(PY)/Cargo.toml
	cargo bench --bench '*'
	ray-rust microbenchmark

compat: build ## Write docs/compatibility.md; with PEER, an interpreter that has Ray, its names are read again first
	python .ci/compatibility.py $(if $(PEER),--peer $(PEER))

lint: lint-rust lint-python lint-dependencies ## Check formatting, lints, types, and the dependencies' licences

lint-rust: $(VENV)/ready ## Check formatting and lints of the Rust code
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --workspace --all-targets -- -D warnings

lint-python: build $(VENV)/lint-ready ## Check formatting, lints, types and stubs of the Python code
	cd $(PY) && ruff check . && ruff format --check .
	ruff check --config $(PY)/pyproject.toml benchmarks examples .ci
	ruff format --config $(PY)/pyproject.toml --check benchmarks examples .ci
	cd $(PY) && mypy
	cd $(PY) && python -m mypy.stubtest ray_rust._internal --mypy-config-file pyproject.toml --allowlist stubtest-allowlist.txt

lint-dependencies: $(VENV)/ready ## Check licences, sources and known faults of the Rust dependencies
	python .ci/check_dependencies.py

clean: ## Remove what was built
	rm -rf $(VENV) target fuzz/target

$(VENV)/ready: $(PY)/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --disable-pip-version-check maturin==1.16.0 "cloudpickle>=3,<4" \
		numpy "pytest>=8,<10" "pytest-timeout>=2.3,<3"
	touch $@

$(CARGO_FUZZ)/bin/cargo-fuzz:
	cargo install --quiet --locked --root $(CARGO_FUZZ) cargo-fuzz@$(lastword $(subst -, ,$(CARGO_FUZZ)))

# What the Python package works with, if it is there.
$(VENV)/test-ready: $(VENV)/ready
	python -m pip install --quiet --disable-pip-version-check debugpy joblib pandas pyarrow tqdm uv
	touch $@

# Pinned, for what a linter or type checker thinks of the same code changes from one release to the next.
$(VENV)/lint-ready: $(VENV)/ready
	python -m pip install --quiet --disable-pip-version-check mypy==2.4.1 ruff==0.17.6 \
		"pyright[nodejs]==1.1.414"
	pyright --version
	touch $@
