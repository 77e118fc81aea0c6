# Frozen configurations: one JSON per step, rewritten only when its content changes. Jobs read these
# files and never the study's configuration, which may be edited while jobs wait in a queue.

FROZEN = "|".join(map(re.escape, PLAN.frozen))


localrules:
    freeze,


rule freeze:
    input:
        marker=f"{MARKERS}/{{frozen}}",
        template=project_file("workflow/templates/frozen.json.jinja"),
    output:
        "{frozen}",
    log:
        "<logs>/freeze/{frozen}.log",
    wildcard_constraints:
        frozen=FROZEN,
    params:
        content=lambda wildcards: PLAN.frozen[wildcards.frozen],
    message:
        "Configuration {output}"
    template_engine:
        "jinja2"
