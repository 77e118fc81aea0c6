# Faces in all sets of images: aligned to the template, and described by extractors.


rule align_photographs:
    input:
        config="<results>/config/align.json",
        manifest=rules.prepare.output.manifest,
    output:
        "<results>/aligned/real/manifest.parquet",
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
        root=subpath(input.manifest, parent=True),
        out=subpath(output[0], parent=True),
    message:
        "real: align faces"
    shell:
        "python -m pipeline_steps.align --config {input.config} --manifest {input.manifest}"
        " --root {params.root} --out {params.out} &> {log}"


rule align_in_the_wild:
    input:
        config="<results>/config/align.json",
        images=STUDY.in_the_wild,
    output:
        "<results>/aligned/wild/manifest.parquet",
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
        out=subpath(output[0], parent=True),
    message:
        "wild: align faces"
    shell:
        "python -m pipeline_steps.align --config {input.config} --images {input.images}"
        " --out {params.out} &> {log}"


rule align:
    input:
        config="<results>/config/align.json",
        manifest="<results>/samples/{variant}/manifest.parquet",
    output:
        "<results>/aligned/{variant}/manifest.parquet",
    log:
        "<logs>/align/{variant}.log",
    benchmark:
        "<benchmarks>/align/{variant}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=4000,
        runtime=120,
    params:
        root=subpath(input.manifest, parent=True),
        out=subpath(output[0], parent=True),
    message:
        "{wildcards.variant}: align faces"
    shell:
        "python -m pipeline_steps.align --config {input.config} --manifest {input.manifest}"
        " --root {params.root} --out {params.out} &> {log}"


# A reference set may be large: one job per extractor, so that a further one costs its own time only.
rule features_of_reference:
    input:
        config="<results>/config/features/{extractor}.json",
        aligned="<results>/aligned/{reference}/manifest.parquet",
    output:
        "<results>/features/{reference}/{extractor}.safetensors",
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
        "python -m pipeline_steps.features --config {input.config} --aligned {params.aligned}"
        " --out {output} &> {log}"


# A variant is small: all extractors in one process, whose start would cost more than its work.
rule features:
    input:
        configs=expand(
            "<results>/config/features/{extractor}.json", extractor=PLAN.extractors
        ),
        aligned="<results>/aligned/{variant}/manifest.parquet",
    output:
        expand(
            "<results>/features/{{variant}}/{extractor}.safetensors",
            extractor=PLAN.extractors,
        ),
    log:
        "<logs>/features/{variant}.log",
    benchmark:
        "<benchmarks>/features/{variant}.tsv"
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
        "python -m pipeline_steps.features --config {input.configs} --aligned {params.aligned}"
        " --out {output} &> {log}"
