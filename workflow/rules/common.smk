# What all rules share: the plan of the study, the name of its results folder S, and the wildcards.

import signal
import sys
from pathlib import Path

from pipeline_steps.check_study import refuse_missing, refuse_unready, tell_empty_cells
from pipeline_steps.identities.consent.withdrawal import remove_refused
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.lease import candidate_gpus
from pipeline_steps.runtime.run_lock import claim_run, clear_stale_locks, release_run
from pipeline_steps.study.plan import RENDERED, WORLD, project_file
from pipeline_steps.study.reruns import compare_contents, tell_reasons
from pipeline_steps.study.snapshot import MARKERS, listed, open_plan

try:
    PLAN = open_plan(config, workflow.configfiles, main=workflow.is_main_process)
    if workflow.is_main_process:
        refuse_missing(PLAN)
except StepError as error:  # one sentence, without the traceback that Snakemake would print
    sys.exit(f"error: {error}")
STUDY = PLAN.study
S = PLAN.results
at, conf = PLAN.at, PLAN.config  # paths of artefacts and of frozen configurations
LOGS, BENCHMARKS = (str(Path(at(of, file="x")).parent) for of in ("log", "benchmark"))
VARIANT = "{base_model}/{method}/{prompts}"
GENERATED = "|".join(STUDY.variants)
if workflow.is_main_process:
    clear_stale_locks(S)
    compare_contents(PLAN)
    tell_reasons(workflow, PLAN)
ENVIRONMENT = workflow.source_path("../../envs/environment.yaml")

# Jobs run `python` of the environment that runs Snakemake, activated or not.
os.environ.update(PATH=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")

# A scheduler's warning before a job's end goes to all its processes. The step heeds it; Snakemake,
# which would die of it, has to live until the step has saved its state.
signal.signal(signal.SIGUSR1, signal.SIG_IGN)

# --resources gpu=0 means that no card is used, also where there is one.
if workflow.resource_settings.resources.get("gpu") == 0:
    os.environ.update(CUDA_VISIBLE_DEVICES="")


wildcard_constraints:
    base_model="|".join(STUDY.base_models),
    method="|".join(STUDY.methods),
    prompts="|".join(STUDY.prompt_sets),
    share=r"\d+",
    shares=r"\d+",
    reference="|".join(["real", "wild", *STUDY.external]),
    external="|".join(STUDY.external_sets) or "$.",  # none
    variant="|".join(STUDY.compared),
    extractor="|".join(PLAN.extractors),
    repetition=r"\d+",


# On a cluster `gpu` counts the cards of one submitted job, not those of all jobs together: jobs of a
# group take turns on their card, and gpu=1 doesn't make the whole cluster wait for one card.
resource_scopes:
    gpu="local",


# A machine without any GPU needs no turns taken; elsewhere jobs that can use one ask for one.
HAS_GPU = bool(candidate_gpus())
GPU = lambda wildcards: int(HAS_GPU or not workflow.local_exec)


# Before the first job of a run: weights and licences of the jobs that are to be run. No
# rule of its own, whose output could make others run again.
onstart:
    claim_run(S)
    refuse_unready(PLAN, [path for job in workflow.dag.needrun_jobs() for path in job.input])
    remove_refused(PLAN)


onsuccess:
    release_run()
    tell_empty_cells(PLAN)


onerror:
    release_run()
