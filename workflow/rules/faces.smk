# Faces in all sets of images: aligned to the template, and described by extractors.


rule align_photographs:
    input:
        config=conf("align"),
        manifest=rules.prepare.output.manifest,
    output:
        at("aligned", source="real"),
    log:
        "<logs>/align/real.log",
    benchmark:
        "<benchmarks>/align/real.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=4000,
        runtime=120,
    params:
        out=subpath(output[0], parent=True),
    message:
        "real: align faces"
    shell:
        "python -m pipeline_steps.align --config {input.config:q} --manifest {input.manifest:q}"
        " --out {params.out:q} &> {log:q}"


rule align_in_the_wild:
    input:
        config=conf("align"),
        images=listed(STUDY.in_the_wild),
    output:
        at("aligned", source="wild"),
    log:
        "<logs>/align/wild.log",
    benchmark:
        "<benchmarks>/align/wild.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=4000,
        runtime=480,
    params:
        images=lambda wildcards: STUDY.in_the_wild,
        out=subpath(output[0], parent=True),
    message:
        "wild: align faces"
    shell:
        "python -m pipeline_steps.align --config {input.config:q} --images {params.images:q}"
        " --out {params.out:q} &> {log:q}"


rule align_external:
    input:
        config=conf("align"),
        images=lambda wildcards: listed(STUDY.external_sets[wildcards.external]),
        withdrawn=PLAN.withdrawn,
    output:
        at("aligned", source="external/{external}"),
    log:
        "<logs>/align/external/{external}.log",
    benchmark:
        "<benchmarks>/align/external/{external}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=4000,
        runtime=1440,
    params:
        images=lambda wildcards: STUDY.external_sets[wildcards.external],
        withdrawn=["--withdrawn", *PLAN.withdrawn] if PLAN.withdrawn else [],
        out=subpath(output[0], parent=True),
    message:
        "external/{wildcards.external}: align faces"
    shell:
        "python -m pipeline_steps.align --config {input.config:q} --external {params.images:q}"
        " {params.withdrawn:q} --out {params.out:q} &> {log:q}"


rule align:
    input:
        config=conf("align"),
        manifest=at("samples"),
    output:
        at("aligned", source="{variant}"),
    log:
        "<logs>/align/{variant}.log",
    benchmark:
        "<benchmarks>/align/{variant}.tsv"
    wildcard_constraints:
        variant=GENERATED,
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=4000,
        runtime=120,
    params:
        out=subpath(output[0], parent=True),
    message:
        "{wildcards.variant}: align faces"
    shell:
        "python -m pipeline_steps.align --config {input.config:q} --manifest {input.manifest:q}"
        " --out {params.out:q} &> {log:q}"


# Sets of others may be large: one job per extractor, so that a further one costs its own time only.
rule features_of_reference:
    input:
        config=conf("features/{extractor}"),
        aligned=at("aligned", source="{reference}"),
    output:
        at("features", source="{reference}"),
    log:
        "<logs>/features/{reference}/{extractor}.log",
    benchmark:
        "<benchmarks>/features/{reference}/{extractor}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=8000,
        runtime=480,
    params:
        aligned=subpath(input.aligned, parent=True),
    message:
        "{wildcards.reference}: features by {wildcards.extractor}"
    shell:
        "python -m pipeline_steps.features --config {input.config:q} --aligned {params.aligned:q}"
        " --out {output:q} &> {log:q}"


# A variant is small: all extractors in one process, whose start would cost more than its work.
rule features:
    input:
        configs=expand(conf("features/{extractor}"), extractor=PLAN.extractors),
        aligned=at("aligned", source="{variant}"),
        samples=at("samples"),
    output:
        PLAN.all("features", source=["{variant}"], extractor=PLAN.extractors),
    log:
        "<logs>/features/{variant}.log",
    benchmark:
        "<benchmarks>/features/{variant}.tsv"
    wildcard_constraints:
        variant=GENERATED,
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=8000,
        runtime=120,
    params:
        aligned=subpath(input.aligned, parent=True),
    message:
        "{wildcards.variant}: features"
    shell:
        "python -m pipeline_steps.features --config {input.configs:q} --aligned {params.aligned:q}"
        " --samples {input.samples:q} --out {output:q} &> {log:q}"
