# make repro   the whole graph, prompts to verdict      make test    every test but the slow ones
# make check   lint, format and the graph's own tests   make tiny    the graph on a two-layer model
# make ui      MLflow in the browser                    make slow    the slow tests
# make plan    what would run, why and how long         make compare policies and experiments in one table
# make sync    log to MLflow what DVC has and it lacks     make bench    speed and memory beside others
# make label   the page on which LABELER=name labels       make label-export  the same as one file
# make convert labels and pairs to other tools and back    make freeze  keep a policy for the next round
# make export  a policy to share, with a model card        make readme  the table of results in README.md
# make harness what alignment cost on standard tasks     make gc     removes old answers from .cache
# make faults  kills, full disks and more, for hours       make soak   random edits between runs, for an hour
# make audit   known vulnerabilities of the packages      make verify whether DVC's cache is what it says

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export TOKENIZERS_PARALLELISM := false

.PHONY: verify audit faults soak export gc harness readme repro test slow check tiny ui plan compare sync bench label label-export convert freeze

repro: .venv/ready .dvc/config
	dvc repro
	@cat reports/verdict.txt
	@echo "report     reports/report.html"
	@echo "runs       make ui, then http://127.0.0.1:5000"

# Two at a time, with a thread each: two processes of two threads on two cores take far longer.
# bitsandbytes imports torch.compile, most of a second in every process that a test starts.
test: .venv/ready
	OMP_NUM_THREADS=1 TORCHDYNAMO_DISABLE=1 python -m pytest -n 2 --no-loadscope-reorder

slow: .venv/ready
	python -m pytest -m slow

check: .venv/ready
	ruff check .
	ruff format --check .
	python -m pytest -q tests/test_dag.py tests/test_readme.py tests/test_params.py

tiny: .venv/ready
	python tests/tiny_graph.py .cache/tiny

ui: .venv/ready
	mlflow server --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port 5000

plan: .venv/ready
	@python -m stages.lib.commands.plan

# make compare ARGS="--baseline closer/dpo"
compare: .venv/ready
	@python -m stages.lib.commands.compare $(ARGS)

# the table of results in README.md, from reports/metrics.json
readme: .venv/ready
	@python -m stages.lib.commands.readme

sync: .venv/ready
	@python -m stages.lib.commands.sync $(ARGS)

# make freeze POLICY=dpo ROUND=1
freeze: .venv/ready
	@python -m stages.lib.commands.freeze "$$POLICY" "$$ROUND"
	@dvc add --quiet "data/rounds/$$ROUND"

# make export POLICY=dpo [MERGED=1] [OUT=exports/dpo]
export: .venv/ready
	@python -m stages.lib.commands.export "$$POLICY" "$${OUT:-exports/$$POLICY}" $(if $(MERGED),--merged)

# make harness POLICY=dpo TASKS=hellaswag,truthfulqa_mc2 [LIMIT=100] [INCLUDE=folder] [BATCH=8]
harness: .venv/ready
	@python -m stages.lib.commands.harness "$$POLICY" "$$TASKS" $(if $(LIMIT),--limit "$$LIMIT") \
		$(if $(INCLUDE),--include "$$INCLUDE") $(if $(BATCH),--batch "$$BATCH")

# make label LABELER=ann [CRITERION=helpful] [TASK=thumbs] [PORT=8765]
ASKED = $(if $(LABELER),"$$LABELER",$(error say who labels: make $@ LABELER=ann)) \
	$(if $(CRITERION),--criterion "$$CRITERION") $(if $(TASK),--task "$$TASK")
label: .venv/ready
	@python -m stages.lib.commands.label $(ASKED) $(if $(PORT),--port "$$PORT")

# make label-export LABELER=ann OUT=ann.html
label-export: .venv/ready
	@python -m stages.lib.commands.label $(ASKED) --export $(if $(OUT),"$$OUT",$(error say where to: OUT=ann.html))

# make convert ARGS="label-studio-out tasks.json --criterion harmless"
convert: .venv/ready
	@python -m stages.lib.commands.convert $(ARGS)

# make gc [DAYS=30]: what .cache keeps of answers and stopped trainings, unused for so long
gc: .venv/ready
	@python -m stages.lib.commands.gc --days "$${DAYS:-30}"

# make verify [ARGS=--remove]
verify: .venv/ready
	@python -m stages.lib.commands.verify $(ARGS)

# docs/reliability.md; what was tried already is in .cache/faults/faults.jsonl and not tried again
faults: .venv/ready
	python tests/faults.py .cache/faults $(ARGS)

# make soak [MINUTES=60]
soak: .venv/ready
	rm -rf .cache/soak
	python tests/soak.py .cache/soak --minutes $(or $(MINUTES),60)

# in an environment of its own, so that it judges the packages and is none of them
audit:
	@$(PYTHON) -m venv .cache/audit && .cache/audit/bin/pip install --quiet pip-audit
	@.cache/audit/bin/pip-audit --requirement requirements.lock --disable-pip --no-deps --progress-spinner off

# after `make repro`
bench: .venv/ready
	python tests/bench_speed.py
	python tests/bench_items.py
	python tests/bench_memory.py

.venv/ready: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Plumbline needs Python 3.11 or later; call make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@
