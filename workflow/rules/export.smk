# Datasets to pass on: `snakemake export`, not part of the default target.


rule export_variant:
    input:
        config=conf("export/{variant}"),
        licences=project_file("config/models.yaml"),
        samples=at("samples"),
        aligned=at("aligned", source="{variant}"),
        identities=PLAN.people,
        quality=at("table", table="quality", ending="csv"),
        identity=at("table", table="identity", ending="csv"),
        audit=at("table", table="audit", ending="csv"),
    output:
        directory(f"{S}/export/{{variant}}"),
    log:
        "<logs>/export/{variant}.log",
    benchmark:
        "<benchmarks>/export/{variant}.tsv"
    wildcard_constraints:
        variant=GENERATED,
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=8000,
        runtime=60,
    params:
        samples=subpath(input.samples, parent=True),
        aligned=subpath(input.aligned, parent=True),
        tables=subpath(input.quality, parent=True),
    message:
        "{wildcards.variant}: export"
    shell:
        "python -m pipeline_steps.export --config {input.config:q} --samples {params.samples:q}"
        " --aligned {params.aligned:q} --identities {input.identities:q} --tables {params.tables:q}"
        " --out {output:q} &> {log:q}"
