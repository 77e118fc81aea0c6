# Scores: every variant against the references, and the references against each other.


rule score:
    input:
        config=conf("score/{kind}"),
        variant=lambda wildcards: PLAN.features(wildcards.variant, wildcards.kind),
        real=lambda wildcards: PLAN.features("real", wildcards.kind),
        wild=lambda wildcards: PLAN.features("wild", wildcards.kind),
    output:
        at("scores"),
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
        "python -m pipeline_steps.score --config {input.config:q} --kind {wildcards.kind}"
        " --variant-features {input.variant:q} --real {input.real:q} --wild {input.wild:q}"
        " --out {output:q} &> {log:q}"


rule score_identity:
    input:
        config=conf("score/identity"),
        variant=lambda wildcards: PLAN.features(wildcards.variant, "identity"),
        real=PLAN.features("real", "identity"),
        targets=lambda wildcards: PLAN.targets_of(wildcards.variant),
    output:
        table=at("scores", kind="identity"),
        replicates=at("replicates", kind="identity"),
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
    params:
        targets=lambda wildcards, input: ["--targets", *input.targets] if input.targets else [],
    message:
        "{wildcards.variant}: score identity"
    shell:
        "python -m pipeline_steps.score --config {input.config:q} --kind identity"
        " --variant-features {input.variant:q} --real {input.real:q} {params.targets:q}"
        " --out {output.table:q} --replicates {output.replicates:q} &> {log:q}"


rule score_references:
    input:
        config=conf("score/{kind}"),
        real=lambda wildcards: PLAN.features("real", wildcards.kind),
        wild=lambda wildcards: PLAN.features("wild", wildcards.kind),
    output:
        at("reference_scores"),
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
        wild=lambda wildcards, input: ["--wild", *input.wild] if input.wild else [],
    message:
        "Reference sets: score {wildcards.kind}"
    shell:
        "python -m pipeline_steps.score --config {input.config:q} --kind {wildcards.kind}"
        " --real {input.real:q} {params.wild:q} --out {output:q} &> {log:q}"


rule audit:
    input:
        config=conf("audit"),
        variant=PLAN.audit_features("{variant}"),
        real=PLAN.audit_features("real"),
        wild=PLAN.audit_features("wild"),
        aligned=at("aligned", source="{variant}"),
        real_aligned=at("aligned", source="real"),
        wild_aligned=at("aligned", source="wild"),
    output:
        table=at("audit"),
        pairs=at("audit_pairs"),
        summary=at("audit_summary"),
        page=report(
            at("audit_page"),
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
        mem_mb=12000,
        runtime=60,
    params:
        aligned=subpath(input.aligned, parent=True),
        real_aligned=subpath(input.real_aligned, parent=True),
        wild_aligned=subpath(input.wild_aligned, parent=True),
        out=subpath(output.table, strip_suffix=".csv"),
    message:
        "{wildcards.variant}: audit identities"
    shell:
        "python -m pipeline_steps.audit --config {input.config:q}"
        " --variant-features {input.variant:q} --real {input.real:q} --wild {input.wild:q}"
        " --aligned {params.aligned:q} --real-aligned {params.real_aligned:q}"
        " --wild-aligned {params.wild_aligned:q} --out {params.out:q} &> {log:q}"


rule groups:
    input:
        config=conf("groups"),
        variant=lambda wildcards: (
            PLAN.groups_features(wildcards.source) if wildcards.source != "real" else []
        ),
        real=PLAN.groups_features("real"),
        aligned=at("aligned"),
        identities=rules.prepare.output.identities,
        participants=PLAN.described,
    output:
        at("groups"),
    log:
        "<logs>/groups/{source}.log",
    benchmark:
        "<benchmarks>/groups/{source}.tsv"
    wildcard_constraints:
        source="|".join(PLAN.grouped),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=8000,
        runtime=60,
    params:
        variant=lambda wildcards, input: (
            ["--variant-features", *input.variant] if input.variant else []
        ),
        participants=lambda wildcards, input: (
            ["--participants", *input.participants] if input.participants else []
        ),
    message:
        "{wildcards.source}: groups of people"
    shell:
        "python -m pipeline_steps.groups --config {input.config:q} {params.variant:q}"
        " --real {input.real:q} --aligned {input.aligned:q} --identities {input.identities:q}"
        " {params.participants:q} --out {output:q} &> {log:q}"
