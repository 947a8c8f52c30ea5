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
    {{ bin }}/pip install --quiet -e '.[test,browser]' --group lint --group release
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

# Measure Loop against the bare floor; arguments go to the benchmark
bench *arguments:
    {{ bin }}/python -m bench {{ arguments }}

# Watch orders go through: paid, declined, refunded, told to the merchant
demo:
    {{ bin }}/loop demo

# Take pictures of every page of the dashboard into screenshots/, in both themes and two widths; arguments as in --help
screenshots *arguments:
    {{ bin }}/python -m tests.browser.screenshots {{ arguments }}

# Write the files that are made from code
docs-generated:
    {{ bin }}/python docs/generate.py

# Resolve every dependency anew and pin it with its hashes
lock:
    {{ bin }}/uv pip compile --quiet --upgrade --universal --generate-hashes --all-extras --group lint --group release --custom-compile-command 'just lock' --output-file requirements.lock pyproject.toml

# Build the wheel, the source archive and one executable file into dist/
package:
    rm -rf dist
    {{ bin }}/uv build --quiet --out-dir dist
    {{ bin }}/shiv --quiet --reproducible --console-script loop --output-file dist/loop.pyz dist/*.whl

# Run what CI runs; makes .venv anew
ci:
    bash .ci/run
