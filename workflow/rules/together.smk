# Images of several people: nothing is made from them.


rule sample_together:
    input:
        config=conf("sample_together/{base_model}/{method}"),
        manifest=rules.prepare.output.manifest,
        masks=PLAN.study.sample_together.mask_files,
        generator=branch(
            lambda wildcards: PLAN.generates(wildcards.base_model, wildcards.method),
            then=rules.train_generator.output,
        ),
    output:
        at("together"),
    log:
        "<logs>/sample_together/{base_model}/{method}.log",
    benchmark:
        "<benchmarks>/sample_together/{base_model}/{method}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=16000,
        runtime=120,
    params:
        dataset=subpath(input.manifest, parent=True),
        out=subpath(output[0], parent=True),
        loras=lambda wildcards: PLAN.lora_flag(wildcards.base_model, wildcards.method),
    message:
        "{wildcards.base_model}/{wildcards.method}: sample several people together"
    shell:
        "python -m pipeline_steps.sample_together --config {input.config:q} --dataset {params.dataset:q}"
        " {params.loras:q} --out {params.out:q} &> {log:q}"
