# What a study shows: tables, figures, one page, and where it all came from.


TABLES = ["quality", "identity", "pose", "recognition", "audit"]
FIGURES = ["distributions", "samples", "overview", "pose", "attributes"]


rule tables:
    input:
        config=conf("tables"),
        scores=PLAN.scores,
        replicates=PLAN.replicates,
        verification=PLAN.of_recognisers("verification"),
        audits=PLAN.audits,
    output:
        report(
            expand(
                at("table", ending="csv"),
                table=TABLES,
            ),
            caption="../report/tables.rst",
            category="Tables",
        ),
        expand(
            at("table"),
            table=TABLES,
            ending=["md", "tex"],
        ),
        at("table", table="comparison", ending="csv"),
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
        config=conf("figures"),
        dataset=rules.prepare.output.manifest,
        real=PLAN.judge_features("real"),
        variants=[PLAN.judge_features(variant) for variant in STUDY.variants],
        samples=expand(at("samples"), variant=STUDY.variants),
        pose=[PLAN.features(source, "pose") for source in ("real", *STUDY.variants)],
    output:
        report(
            expand(at("figure", ending="svg"), figure=FIGURES),
            caption="../report/figures.rst",
            category="Figures",
        ),
        expand(at("figure", ending="png"), figure=FIGURES),
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
        licences=project_file("config/models.yaml"),
        sources=map(listed, PLAN.put_in),
        tables=rules.tables.output,
        figures=rules.figures.output,
    output:
        at("provenance"),
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
        sources=PLAN.put_in,
        benchmarks=BENCHMARKS,
        logs=LOGS,
    message:
        "Provenance"
    shell:
        "python -m pipeline_steps.provenance --configs {input.configs} --sources {params.sources}"
        " --benchmarks {params.benchmarks} --logs {params.logs} --out {output} &> {log}"


rule report:
    input:
        config=conf("report"),
        manifests=PLAN.manifests,
        tables=rules.tables.output,
        figures=rules.figures.output,
        audit_pairs=PLAN.audit_pairs,
        provenance=rules.provenance.output,
    output:
        report(
            at("report"),
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
