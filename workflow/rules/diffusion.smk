# Diffusion models: the prior set, fine-tuning to identities, and sampling.
#
# Long steps take the place of their shell (exec), so that a signal to the job reaches the step, and
# Snakemake waits until the step has saved its state.


rule prior:
    input:
        config=conf("prior/{base_model}"),
    output:
        manifest=at("prior"),
        embeddings=at("prior_embeddings"),
    log:
        "<logs>/prior/{base_model}.log",
    benchmark:
        "<benchmarks>/prior/{base_model}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=8000,
        runtime=120,
    params:
        out=subpath(output.manifest, parent=True),
    message:
        "{wildcards.base_model}: prior set"
    shell:
        "python -m pipeline_steps.prior --config {input.config:q}"
        " --out {params.out:q} &> {log:q}"


rule finetune:
    input:
        config=conf("finetune/{base_model}/{method}"),
        manifest=rules.prepare.output.manifest,
        identities=rules.prepare.output.identities,
        prior=rules.prior.output.manifest,
        embeddings=branch(
            lambda wildcards: PLAN.guided(wildcards.method),
            then=[*rules.embed.output, rules.prior.output.embeddings],
        ),
    output:
        at("adapters", share="{share}-of-{shares}"),
    log:
        "<logs>/finetune/{base_model}/{method}/{share}-of-{shares}.log",
    benchmark:
        "<benchmarks>/finetune/{base_model}/{method}/{share}-of-{shares}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=24000,
        runtime=2880,
    params:
        dataset=subpath(input.manifest, parent=True),
        prior=subpath(input.prior, parent=True),
        out=subpath(output[0], ancestor=2),
    message:
        "{wildcards.base_model}/{wildcards.method}: fine-tune share {wildcards.share}"
    shell:
        "exec python -m pipeline_steps.finetune --config {input.config:q} --dataset {params.dataset:q}"
        " --prior {params.prior:q} --out {params.out:q}"
        " --share {wildcards.share} --shares {wildcards.shares} &> {log:q}"


rule train_generator:
    input:
        config=conf("train_generator/{base_model}/{method}"),
        images=lambda wildcards: listed(STUDY.train_generator.resolved(wildcards.method).images),
    output:
        at("generator"),
    log:
        "<logs>/train_generator/{base_model}/{method}.log",
    benchmark:
        "<benchmarks>/train_generator/{base_model}/{method}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=24000,
        runtime=2880,
    params:
        images=lambda wildcards: STUDY.train_generator.resolved(wildcards.method).images,
        out=subpath(output[0], parent=True),
    message:
        "{wildcards.base_model}/{wildcards.method}: train the weights for everybody"
    shell:
        "exec python -m pipeline_steps.train_generator --config {input.config:q}"
        " --images {params.images:q} --out {params.out:q} &> {log:q}"


rule invent:
    input:
        config=conf("invent"),
        faces=PLAN.all("features", source=["wild", "real"], extractor=[STUDY.recogniser]),
    output:
        people=at("invented"),
        targets=at("targets"),
    log:
        "<logs>/invent.log",
    benchmark:
        "<benchmarks>/invent.tsv"
    conda:
        ENVIRONMENT
    threads: 2
    resources:
        gpu=0,
        mem_mb=4000,
        runtime=60,
    params:
        out=subpath(output[0], parent=True),
    message:
        "Made-up people: directions for {STUDY.invent.people} of them"
    shell:
        "python -m pipeline_steps.invent --config {input.config:q} --faces {input.faces:q}"
        " --out {params.out:q} &> {log:q}"


rule sample:
    input:
        config=conf("sample/{base_model}/{method}/{prompts}"),
        manifest=rules.prepare.output.manifest,
        identities=PLAN.people,
        loras=branch(
            lambda wildcards: PLAN.tuned(wildcards.method),
            then=(
                PLAN.all("adapters", share=PLAN.shares)  # people of other shares are looked at
                if STUDY.sample.negative_guidance
                else rules.finetune.output
            ),
        ),
        generator=branch(
            lambda wildcards: PLAN.generates(wildcards.base_model, wildcards.method),
            then=rules.train_generator.output,
        ),
        embeddings=branch(
            lambda wildcards: PLAN.compared(wildcards.method), then=rules.embed.output
        ),
        targets=[at("targets")] if STUDY.made_up else [],
    output:
        at("samples_of_share", variant=VARIANT, share="{share}-of-{shares}"),
    log:
        "<logs>/sample/{base_model}/{method}/{prompts}/{share}-of-{shares}.log",
    benchmark:
        "<benchmarks>/sample/{base_model}/{method}/{prompts}/{share}-of-{shares}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=16000,
        runtime=720,
    params:
        dataset=subpath(input.identities, parent=True),
        out=subpath(output[0], ancestor=2),
        loras=lambda wildcards: PLAN.lora_flag(wildcards.base_model, wildcards.method),
    message:
        "{wildcards.base_model}/{wildcards.method}/{wildcards.prompts}: sample share {wildcards.share}"
    shell:
        "exec python -m pipeline_steps.sample --config {input.config:q} --dataset {params.dataset:q}"
        " {params.loras:q} --out {params.out:q}"
        " --share {wildcards.share} --shares {wildcards.shares} &> {log:q}"


rule gather:
    input:
        parts=PLAN.all("samples_of_share", variant=[VARIANT], share=PLAN.shares),
    output:
        at("samples", variant=VARIANT),
    log:
        "<logs>/gather/{base_model}/{method}/{prompts}.log",
    benchmark:
        "<benchmarks>/gather/{base_model}/{method}/{prompts}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=6000,
        runtime=10,
    message:
        "{wildcards.base_model}/{wildcards.method}/{wildcards.prompts}: gather the shares"
    shell:
        "python -m pipeline_steps.gather --parts {input.parts:q} --out {output:q} &> {log:q}"
