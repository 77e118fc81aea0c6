# From photographs of consenting people to a synthetic face-recognition dataset, with evidence.
#
#   snakemake --cores all                                        the study of config/demo.yaml
#   snakemake --cores all --configfile config/paper_sd21.yaml    another study
#   snakemake --workflow-profile profiles/slurm                  on a cluster
#   snakemake --cores all export                                 datasets to pass on
#
# Everything a study makes lies under results/<study>/.

from snakemake.utils import min_version

min_version("9.20")


if not workflow.configfiles:

    configfile: f"{workflow.basedir}/config/demo.yaml"


include: "workflow/rules/common.smk"


pathvars:
    results=S,
    logs=LOGS,
    benchmarks=BENCHMARKS,


report: "workflow/report/workflow.rst"


include: "workflow/rules/freeze.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/diffusion.smk"
include: "workflow/rules/together.smk"
include: "workflow/rules/faces.smk"
include: "workflow/rules/scores.smk"
include: "workflow/rules/recognition.smk"
include: "workflow/rules/evidence.smk"
include: "workflow/rules/export.smk"


rule all:
    default_target: True
    input:
        PLAN.targets,


rule export:
    input:
        expand(f"{S}/export/{{variant}}", variant=STUDY.tuned_variants),
