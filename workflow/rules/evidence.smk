# What a study shows: tables, figures, one page, and where it all came from.


TABLES = ["quality", "identity", "pose", "recognition", "audit"]
FIGURES = ["distributions", "samples", "overview", "pose", "attributes"]


rule tables:
    input:
        config="<results>/config/tables.json",
        scores=PLAN.scores,
        replicates=PLAN.replicates,
        verification=expand("{model}/verification.csv", model=PLAN.models_trained),
        audits=PLAN.audits,
    output:
        report(
            expand(
                "<results>/tables/{table}.csv",
                table=TABLES,
            ),
            caption="../report/tables.rst",
            category="Tables",
        ),
        expand(
            "<results>/tables/{table}.{ending}",
            table=TABLES,
            ending=["md", "tex"],
        ),
        "<results>/tables/comparison.csv",
    log:
        "<logs>/tables.log",
    benchmark:
        "<benchmarks>/tables.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=10,
    params:
        out=subpath(output[0], parent=True),
    message:
        "Tables"
    shell:
        "python -m pipeline_steps.tables --config {input.config} --scores {input.scores}"
        " --replicates {input.replicates} --verification {input.verification}"
        " --audits {input.audits} --out {params.out} &> {log}"


rule figures:
    input:
        config="<results>/config/figures.json",
        dataset=rules.prepare.output.manifest,
        real=PLAN.judge_features("real"),
        variants=[PLAN.judge_features(variant) for variant in STUDY.variants],
        samples=expand(
            "<results>/samples/{variant}/manifest.parquet", variant=STUDY.variants
        ),
        pose=[PLAN.features(source, "pose") for source in ("real", *STUDY.variants)],
    output:
        report(
            expand("<results>/figures/{figure}.svg", figure=FIGURES),
            caption="../report/figures.rst",
            category="Figures",
        ),
        expand("<results>/figures/{figure}.png", figure=FIGURES),
    log:
        "<logs>/figures.log",
    benchmark:
        "<benchmarks>/figures.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=4000,
        runtime=30,
    params:
        dataset=subpath(input.dataset, parent=True),
        out=subpath(output[0], parent=True),
    message:
        "Figures"
    shell:
        "python -m pipeline_steps.figures --config {input.config} --dataset {params.dataset}"
        " --real {input.real} --variant-features {input.variants} --samples {input.samples}"
        " --pose {input.pose} --out {params.out} &> {log}"


rule provenance:
    input:
        configs=list(PLAN.frozen),
        sources=PLAN.put_in,
        tables=rules.tables.output,
        figures=rules.figures.output,
    output:
        "<results>/provenance.json",
    log:
        "<logs>/provenance.log",
    benchmark:
        "<benchmarks>/provenance.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=60,
    params:
        benchmarks=f"{S}/benchmarks",
        logs=f"{S}/logs",
    message:
        "Provenance"
    shell:
        "python -m pipeline_steps.provenance --configs {input.configs} --sources {input.sources}"
        " --benchmarks {params.benchmarks} --logs {params.logs} --out {output} &> {log}"


rule report:
    input:
        config="<results>/config/report.json",
        manifests=PLAN.manifests,
        tables=rules.tables.output,
        figures=rules.figures.output,
        audit_pairs=PLAN.audit_pairs,
        provenance=rules.provenance.output,
    output:
        report(
            "<results>/report.html",
            caption="../report/report.rst",
            category="Report",
        ),
    log:
        "<logs>/report.log",
    benchmark:
        "<benchmarks>/report.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=10,
    params:
        tables=lambda wildcards, input: Path(input.tables[0]).parent,
        figures=lambda wildcards, input: Path(input.figures[0]).parent,
    message:
        "Report"
    shell:
        "python -m pipeline_steps.report --config {input.config} --tables {params.tables}"
        " --figures {params.figures} --manifests {input.manifests}"
        " --audit-pairs {input.audit_pairs} --provenance {input.provenance}"
        " --out {output} &> {log}"
