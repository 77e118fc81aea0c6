# Scores: every variant against the references, and the references against each other.


rule score:
    input:
        config="<results>/config/score/{kind}.json",
        variant=lambda wildcards: PLAN.features(wildcards.variant, wildcards.kind),
        real=lambda wildcards: PLAN.features("real", wildcards.kind),
        wild=lambda wildcards: PLAN.features("wild", wildcards.kind),
    output:
        "<results>/scores/{kind}/{variant}.csv",
    log:
        "<logs>/score/{kind}/{variant}.log",
    benchmark:
        "<benchmarks>/score/{kind}/{variant}.tsv"
    wildcard_constraints:
        kind="quality|pose",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=8000,
        runtime=120,
    message:
        "{wildcards.variant}: score {wildcards.kind}"
    shell:
        "python -m pipeline_steps.score --config {input.config} --kind {wildcards.kind}"
        " --variant-features {input.variant} --real {input.real} --wild {input.wild}"
        " --out {output} &> {log}"


rule score_identity:
    input:
        config="<results>/config/score/identity.json",
        variant=lambda wildcards: PLAN.features(wildcards.variant, "identity"),
        real=PLAN.features("real", "identity"),
    output:
        table="<results>/scores/identity/{variant}.csv",
        replicates="<results>/scores/identity/{variant}.parquet",
    log:
        "<logs>/score/identity/{variant}.log",
    benchmark:
        "<benchmarks>/score/identity/{variant}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=8000,
        runtime=120,
    message:
        "{wildcards.variant}: score identity"
    shell:
        "python -m pipeline_steps.score --config {input.config} --kind identity"
        " --variant-features {input.variant} --real {input.real}"
        " --out {output.table} --replicates {output.replicates} &> {log}"


rule score_references:
    input:
        config="<results>/config/score/{kind}.json",
        real=lambda wildcards: PLAN.features("real", wildcards.kind),
        wild=lambda wildcards: PLAN.reference_features("wild", wildcards.kind),
    output:
        "<results>/scores/{kind}/reference.csv",
    log:
        "<logs>/score/{kind}/reference.log",
    benchmark:
        "<benchmarks>/score/{kind}/reference.tsv"
    wildcard_constraints:
        kind="quality|identity|pose",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=8000,
        runtime=120,
    params:
        wild=lambda wildcards, input: f"--wild {input.wild}" if input.wild else "",
    message:
        "Reference sets: score {wildcards.kind}"
    shell:
        "python -m pipeline_steps.score --config {input.config} --kind {wildcards.kind}"
        " --real {input.real} {params.wild} --out {output} &> {log}"


rule audit:
    input:
        config="<results>/config/audit.json",
        variant=PLAN.audit_features("{variant}"),
        real=PLAN.audit_features("real"),
        wild=PLAN.audit_features("wild"),
        aligned="<results>/aligned/{variant}/manifest.parquet",
        real_aligned="<results>/aligned/real/manifest.parquet",
        wild_aligned="<results>/aligned/wild/manifest.parquet",
    output:
        table="<results>/audit/{variant}.csv",
        pairs="<results>/audit/{variant}.pairs.csv",
        summary="<results>/audit/{variant}.summary.csv",
        page=report(
            "<results>/audit/{variant}.html",
            caption="../report/audit.rst",
            category="Identity audit",
            labels={"variant": "{variant}"},
        ),
    log:
        "<logs>/audit/{variant}.log",
    benchmark:
        "<benchmarks>/audit/{variant}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=8000,
        runtime=60,
    params:
        aligned=subpath(input.aligned, parent=True),
        real_aligned=subpath(input.real_aligned, parent=True),
        wild_aligned=subpath(input.wild_aligned, parent=True),
        out=subpath(output.table, strip_suffix=".csv"),
    message:
        "{wildcards.variant}: audit identities"
    shell:
        "python -m pipeline_steps.audit --config {input.config}"
        " --variant-features {input.variant} --real {input.real} --wild {input.wild}"
        " --aligned {params.aligned} --real-aligned {params.real_aligned}"
        " --wild-aligned {params.wild_aligned} --out {params.out} &> {log}"
