# Photographs: rendered where a study asks for the embedded world, prepared, and embedded.


rule render_demo_world:
    input:
        config=f"{WORLD}/render_demo_world.json",
    output:
        **RENDERED,
    log:
        "<logs>/render_demo_world.log",
    benchmark:
        "<benchmarks>/render_demo_world.tsv"
    conda:
        ENVIRONMENT
    threads: 2
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=30,
    params:
        out=subpath(input.config, parent=True),
    message:
        "Embedded world: render photographs, in-the-wild images and benchmarks"
    shell:
        "python -m pipeline_steps.render_demo_world --config {input.config:q}"
        " --out {params.out:q} --workers {threads} &> {log:q}"


rule prepare:
    input:
        config=conf("prepare"),
        sources=map(listed, PLAN.photographs),
        withdrawn=PLAN.withdrawn,
    output:
        manifest=at("manifest"),
        identities=at("identities"),
        report=at("dataset_report"),
    log:
        "<logs>/prepare.log",
    benchmark:
        "<benchmarks>/prepare.tsv"
    conda:
        ENVIRONMENT
    threads: 2
    resources:
        gpu=GPU,
        mem_mb=4000,
        runtime=120,
    params:
        out=subpath(output.manifest, parent=True),
    message:
        "Photographs: find faces, crop, sort by identity"
    shell:
        "python -m pipeline_steps.prepare --config {input.config:q} --out {params.out:q}"
        " --workers {threads} &> {log:q}"


# Fails at once where people are missing, and nothing waits for it: the others are computed all the same.
rule check_dataset:
    input:
        config=conf("check_dataset"),
        report=rules.prepare.output.report,
        manifest=rules.prepare.output.manifest,
    output:
        at("complete"),
    log:
        "<logs>/check_dataset.log",
    benchmark:
        "<benchmarks>/check_dataset.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=10,
    params:
        dataset=subpath(input.report, parent=True),
    message:
        "Photographs: is everybody there?"
    shell:
        "python -m pipeline_steps.check_dataset --config {input.config:q} --dataset {params.dataset:q}"
        " &> {log:q}"


rule embed:
    input:
        config=conf("embed"),
        manifest=rules.prepare.output.manifest,
    output:
        at("embeddings_index"),
    log:
        "<logs>/embed.log",
    benchmark:
        "<benchmarks>/embed.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=4000,
        runtime=60,
    params:
        dataset=subpath(input.manifest, parent=True),
    message:
        "Photographs: face embeddings"
    shell:
        "python -m pipeline_steps.embed --config {input.config:q} --dataset {params.dataset:q} &> {log:q}"
