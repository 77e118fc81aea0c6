"""Before a run: remove what is left of people who do not consent any more.

Files of one identity are no rule's outputs, so no run would ever remove them.
"""

from __future__ import annotations

from pathlib import Path

from pipeline_steps.identities.consent.inventory import owners_in
from pipeline_steps.identities.participants import read_participants, refused_of
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.plan import Plan


def remove_refused(plan: Plan) -> list[str]:
    """Remove all results of identities whom the tables of consent refuse, with a list of it.

    Args:
        plan: the study; paths are from the working folder.

    Returns:
        The identities. Nobody where a table is broken: preparation, which reads it next, says so.
    """
    prepare = plan.study.prepare
    table = Path(prepare.gender_table) if prepare.gender_table else None
    present = owners_in(Path(plan.results))
    try:
        participants = read_participants(table) if present and table and table.is_file() else {}
        left = sorted(refused_of(prepare, participants) & present)
    except StepError:
        return []
    if left:
        # Only now: it loads what the start of every run should not wait for.
        from pipeline_steps import withdraw

        for identity in left:
            withdraw.run(plan, identity, by="the workflow", reason="consent is false in a table")
    return left
