# Face recognition trained on each training set, and its accuracy on the benchmarks. Training takes
# the place of its shell (exec), so that a signal to the job reaches it and its state is saved.


rule recognise:
    input:
        config=conf("recognise/{trained_on}/seed{repetition}"),
        aligned=lambda wildcards: PLAN.aligned(wildcards.trained_on),
        validation=STUDY.validation,
    output:
        model=at("recogniser"),
        history=at("history"),
    log:
        "<logs>/recognise/{trained_on}/seed{repetition}.log",
    benchmark:
        "<benchmarks>/recognise/{trained_on}/seed{repetition}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=16000,
        runtime=1440,
    params:
        aligned=lambda wildcards, input: [Path(path).parent for path in input.aligned],
        out=subpath(output.model, parent=True),
    message:
        "Train a recogniser on {wildcards.trained_on}, repetition {wildcards.repetition}"
    shell:
        "exec python -m pipeline_steps.recognise --config {input.config:q}"
        " --aligned {params.aligned:q} --validation {input.validation:q}"
        " --out {params.out:q} &> {log:q}"


rule verify:
    input:
        config=conf("verify"),
        model=rules.recognise.output.model,
        benchmarks=PLAN.verified,
    output:
        at("verification"),
    log:
        "<logs>/verify/{trained_on}/seed{repetition}.log",
    benchmark:
        "<benchmarks>/verify/{trained_on}/seed{repetition}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=8000,
        runtime=120,
    message:
        "Verify the recogniser trained on {wildcards.trained_on}, repetition {wildcards.repetition}"
    shell:
        "python -m pipeline_steps.verify --config {input.config:q} --model {input.model:q}"
        " --benchmarks {input.benchmarks:q} --out {output:q} &> {log:q}"


rule verify_templates:
    input:
        config=conf("verify_templates"),
        model=rules.recognise.output.model,
        sets=map(listed, STUDY.template_sets),
    output:
        at("templates"),
    log:
        "<logs>/verify_templates/{trained_on}/seed{repetition}.log",
    benchmark:
        "<benchmarks>/verify_templates/{trained_on}/seed{repetition}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=16000,
        runtime=720,
    params:
        sets=STUDY.template_sets,
    message:
        "Templates by the recogniser trained on {wildcards.trained_on}, {wildcards.repetition}"
    shell:
        "python -m pipeline_steps.verify_templates --config {input.config:q} --model {input.model:q}"
        " --sets {params.sets:q} --out {output:q} &> {log:q}"
