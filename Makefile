# DATASET= EMBEDDER= TOKENIZER= GENERATOR= TRAIN= EVALUATE= BASELINE= EXPERIMENT= choose a config; ARGS="train.epochs=5" passes any option;
# LAUNCH="torchrun --standalone --nproc-per-node 2" lets several processes share a stage. Each target calls the command `tigerrec`.
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
CHOICES = $(foreach pair,dataset:$(DATASET) embedder:$(EMBEDDER) tokenizer:$(TOKENIZER) generator:$(GENERATOR) train:$(TRAIN) evaluate:$(EVALUATE) baseline:$(BASELINE) experiment:$(EXPERIMENT),$(if $(word 2,$(subst :, ,$(pair))),$(subst :,=,$(pair))))
CALL = @$(BIN)/tigerrec $(1) $(ARGS) $(CHOICES)
CALL_STAGE = @$(if $(LAUNCH),PATH="$(CURDIR)/$(BIN):$$PATH" $(LAUNCH) -m tigerrec,$(BIN)/tigerrec) $(1) $(ARGS) $(CHOICES)
STAGES := data embed tokenize train eval

OPTIONS := PYTHON DATASET EMBEDDER TOKENIZER GENERATOR TRAIN EVALUATE BASELINE EXPERIMENT ARGS LAUNCH RUN TABLE ITEMS ITEMS_FILE K OUT SIZES MODEL
UNKNOWN := $(filter-out $(OPTIONS) MAKEFLAGS MAKEOVERRIDES,$(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name))))
$(if $(UNKNOWN),$(error $(firstword $(UNKNOWN)) is not an option; allowed: $(OPTIONS)))

ALONE := $(if $(LAUNCH),$(filter-out $(STAGES),$(MAKECMDGOALS)))
$(if $(ALONE),$(error LAUNCH= is for $(STAGES), not for $(firstword $(ALONE))))

.PHONY: help setup data embed tokenize train eval baselines table bench profile bench-data bench-gpu bench-serve docs tokenizers audit demo recommend report export add lint test test-all test-lowest sample clean
.NOTPARALLEL:
.DEFAULT_GOAL := help
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12
	@echo 'Choose with DATASET= EMBEDDER= TOKENIZER= GENERATOR= TRAIN= EVALUATE= BASELINE= EXPERIMENT= (files in configs/), pass options as ARGS="train.epochs=5", share a stage by LAUNCH="torchrun --standalone --nproc-per-node 2".'

setup: .venv/.installed  ## make .venv and install tigerrec with its offline encoder

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("tigerrec needs Python 3.11 or later: give one as PYTHON=<python3.x>.") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'installing into .venv (about 2 GB, once) …'
	@$(PIP_INSTALL) -e '.[offline]'
	@touch $@

.venv/.developed: .venv/.installed
	@echo 'installing what tests and lint need …'
	@$(PIP_INSTALL) -e '.[offline,dev]'
	@touch $@

.venv/.served: .venv/.installed
	@echo 'installing what serving needs …'
	@$(PIP_INSTALL) -e '.[offline,serve]'
	@touch $@

data: .venv/.installed  ## raw files → items and interactions
	$(call CALL_STAGE,prepare)

embed: .venv/.installed  ## item texts → vectors
	$(call CALL_STAGE,embed)

tokenize: .venv/.installed  ## vectors → Semantic IDs
	$(call CALL_STAGE,tokenize)

train: .venv/.installed  ## histories of Semantic IDs → generator
	$(call CALL_STAGE,train)

eval: .venv/.installed  ## rank the whole catalogue → HR and NDCG
	$(call CALL_STAGE,evaluate)

baselines: .venv/.installed  ## BASELINE=sasrec_ce: tune it on validation, fit it, rank the whole catalogue
	$(call CALL,baseline)

table: EXPERIMENT ?= beauty_table
table: .venv/.installed  ## tokenizers × seeds beside baselines → one table; resumes, skips what results/ holds; ARGS="seeds=1 tokenizers=[rkmeans,opq]"
	$(call CALL,table)

bench: GENERATOR ?= t5_paper
bench: .venv/.installed  ## training and search against transformers, at the paper's size
	$(call CALL,benchmark)

profile: GENERATOR ?= t5_paper
profile: .venv/.installed  ## which operators the time of training and search goes to
	$(call CALL,profile)

bench-data: .venv/.installed  ## seconds and memory of all stages on made-up shops, of SIZES="1000000 10000000" interactions
	@$(BIN)/python scripts/bench_data.py $(SIZES)

bench-gpu: .venv/.installed  ## seconds of Amazon Beauty on a GPU, stage by stage, and of training and search against transformers
	@$(BIN)/python scripts/bench_gpu.py $(if $(DATASET),--dataset $(DATASET)) $(ARGS)

bench-serve: .venv/.served  ## milliseconds of a server of MODEL=<train folder or export>, or of made-up shops of 10,000 and 1,000,000 items
	@$(BIN)/python scripts/bench_serve.py $(MODEL)

tokenizers: .venv/.installed  ## all tokenizers, or ARGS="tokenizers=[rkmeans,random]" → a table and pictures
	$(call CALL,compare-tokenizers)

audit: .venv/.installed  ## checks on the numbers of a run, or ARGS="audit.checks=[seen,buckets]" → results/audit/
	$(call CALL,audit)

demo: .venv/.installed  ## the whole pipeline on the bundled sample, then a recommendation
	@$(BIN)/tigerrec demo $(ARGS) $(filter-out dataset=%,$(CHOICES))

recommend: .venv/.installed  ## RUN=<train folder or export> ITEMS=<id>,<id> [K=10] → ids, titles, scores
	@test -n "$(RUN)" -a -n "$(ITEMS)" || { echo 'Error: give RUN=<train folder or export> and ITEMS=<item id>,<item id>.' >&2; exit 2; }
	@$(BIN)/tigerrec recommend "$(RUN)" --items "$(ITEMS)" --k $(or $(K),10)

report: .venv/.installed  ## RUN=<train or evaluate folder> or TABLE=<folder of a table> [OUT=<file>.html] → one page to read in a browser
	@test -n "$(RUN)$(TABLE)" || { echo 'Error: give RUN=<train or evaluate folder> or TABLE=<folder of a table>.' >&2; exit 2; }
	@$(BIN)/tigerrec report $(if $(RUN),--run "$(RUN)") $(if $(TABLE),--table "$(TABLE)") $(if $(OUT),--out "$(OUT)")

export: .venv/.installed  ## RUN=<train folder> OUT=<folder> → one self-contained folder
	@test -n "$(RUN)" -a -n "$(OUT)" || { echo 'Error: give RUN=<train folder> and OUT=<new folder>.' >&2; exit 2; }
	@$(BIN)/tigerrec export "$(RUN)" --out "$(OUT)"

add: .venv/.installed  ## RUN=<train folder or export> ITEMS_FILE=<table of new items> OUT=<folder> → an export with them, nothing trained
	@test -n "$(RUN)" -a -n "$(ITEMS_FILE)" -a -n "$(OUT)" || { echo 'Error: give RUN=<train folder or export>, ITEMS_FILE=<table of new items> and OUT=<new folder>.' >&2; exit 2; }
	@$(BIN)/tigerrec add "$(RUN)" --items-file "$(ITEMS_FILE)" --out "$(OUT)"

docs: .venv/.developed  ## the pages of docs/ as a site, in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet && echo 'wrote build/site; next: $(BIN)/mkdocs serve, and a browser at http://127.0.0.1:8000'

sample: .venv/.installed  ## write data/sample again
	@$(BIN)/python scripts/make_sample.py

lint: .venv/.developed  ## ruff, mypy, and the layers of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: .venv/.developed  ## the tests that take minutes together, or ARGS="tests/test_tokenizers.py -k rkmeans"
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not long' $(ARGS)

test-all: .venv/.developed  ## all tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-lowest: .venv/.installed  ## the pipeline with the lowest versions that pyproject.toml allows, from the package index; torch is the pinned one
	@$(BIN)/python scripts/lowest_versions.py

clean:  ## remove .venv and caches; runs/ and data/ stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build *.egg-info
