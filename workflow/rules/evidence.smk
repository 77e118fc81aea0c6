# What a study shows: tables, figures, one page, and where it all came from.


TABLES = ["quality", "identity", "pose", "recognition", "audit", "groups"]
FIGURES = ["distributions", "samples", "overview", "pose", "attributes", "groups", "measures"]


rule tables:
    input:
        config=conf("tables"),
        scores=PLAN.scores,
        replicates=PLAN.replicates,
        verification=PLAN.of_recognisers("verification"),
        audits=PLAN.audits,
        groups=PLAN.all("groups", source=PLAN.grouped),
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
        "python -m pipeline_steps.tables --config {input.config:q} --scores {input.scores:q}"
        " --replicates {input.replicates:q} --verification {input.verification:q}"
        " --audits {input.audits:q} --groups {input.groups:q} --out {params.out:q} &> {log:q}"


rule figures:
    input:
        config=conf("figures"),
        dataset=rules.prepare.output.manifest,
        real=PLAN.judge_features("real"),
        variants=[PLAN.judge_features(variant) for variant in STUDY.compared],
        samples=[PLAN.shown(variant) for variant in STUDY.compared],
        pose=[PLAN.features(source, "pose") for source in ("real", *STUDY.compared)],
        groups=PLAN.all("groups", source=PLAN.grouped),
        scores=[
            *PLAN.all("scores", kind=["quality", "identity"], variant=STUDY.compared),
            *PLAN.audits,
        ],
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
        "python -m pipeline_steps.figures --config {input.config:q} --dataset {params.dataset:q}"
        " --real {input.real:q} --variant-features {input.variants:q} --samples {input.samples:q}"
        " --pose {input.pose:q} --groups {input.groups:q} --scores {input.scores:q}"
        " --out {params.out:q} &> {log:q}"


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
        names=PLAN.names,
    message:
        "Provenance"
    shell:
        "python -m pipeline_steps.provenance --configs {input.configs:q} --sources {params.sources:q}"
        " --benchmarks {params.benchmarks:q} --logs {params.logs:q} --names {params.names:q}"
        " --out {output:q} &> {log:q}"


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
        "python -m pipeline_steps.report --config {input.config:q} --tables {params.tables:q}"
        " --figures {params.figures:q} --manifests {input.manifests:q}"
        " --audit-pairs {input.audit_pairs:q} --provenance {input.provenance:q}"
        " --out {output:q} &> {log:q}"


rule explore:
    input:
        config=conf("explore"),
        dataset=rules.prepare.output.manifest,
        identities=rules.prepare.output.identities,
        aligned=PLAN.all("aligned", source=PLAN.explored),
        features=[path for source in PLAN.explored for path in PLAN.explored_features(source)],
        samples=PLAN.all("samples", variant=STUDY.variants),
        audits=PLAN.all("audit", variant=STUDY.compared),
    output:
        at("explorer"),
    log:
        "<logs>/explore.log",
    benchmark:
        "<benchmarks>/explore.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=4000,
        runtime=60,
    params:
        dataset=subpath(input.dataset, parent=True),
    message:
        "Explorer"
    shell:
        "python -m pipeline_steps.explore --config {input.config:q} --dataset {params.dataset:q}"
        " --aligned {input.aligned:q} --features {input.features:q} --samples {input.samples:q}"
        " --audits {input.audits:q} --out {output:q} &> {log:q}"
