"""Withdraw an identity from a study: remove all that was derived from that person.

In:  a study's configuration (--study), and whose consent ends (--identity).
Out: the table of people who have withdrawn (prepare.withdrawn; beside the photographs if the
     configuration says nothing), by which preparation never reads their photographs again;
     withdrawals/<study>/<identity>-<day>.json and .md: what was removed and why, who did it and
     when, what is outside this project's reach, and the result of a search afterwards.
     Removed are the identity's images, embeddings, weights, samples and crops, its rows in stores
     of features, and everything that was made from all identities: tables, figures, reports,
     recognisers, exports. The next run of the workflow makes these again, without the identity; no
     other identity is trained or sampled again.

The list names each file by the SHA-256 of its SHA-256, so that a file can be recognised by it
and yet no hash of the person's data stays behind. --verify searches again, by such a list.
--sweep removes what is left of identities that are no longer in dataset/identities.csv.
"""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from pathlib import Path

from pipeline_steps.identities.consent.withdrawal import (
    GONE,
    WITHDRAWN,
    known_identities,
    leftovers,
    withdraw,
)
from pipeline_steps.identities.consent.withdrawal import (
    verify as verify_list,
)
from pipeline_steps.naming import natural_key
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.run_lock import claim_run, release_run
from pipeline_steps.study.command import ExitStatus, command, run_main
from pipeline_steps.study.plan import make_plan
from pipeline_steps.study.settings.study import read_configs


def run(
    *,
    study: Sequence[Path] = (Path("config/demo.yaml"),),
    identity: str | None = None,
    sweep: bool = False,
    verify: Path | None = None,
    dry_run: bool = False,
    by: str | None = None,
) -> ExitStatus:
    """Withdraw an identity, sweep up after several, or search again; one of the three.

    Args:
        study: Study configuration (YAML); of several the later ones win, key by key.
        identity: Whose consent ends, e.g. ID_7.
        sweep: Remove what left the identity table.
        verify: Search again by a list (JSON).
        dry_run: Only list what would go.
        by: Who does it; None: the user's login name.

    Returns:
        1 where a search found something, else 0.

    Raises:
        StepError: the study has no such identity, or not one of the three is asked for.
    """
    if [identity is not None, sweep, verify is not None].count(True) != 1:
        raise StepError("pass one of --identity, --sweep and --verify")
    plan = make_plan(read_configs(study), ", ".join(map(str, study)))
    if verify is not None:
        return ExitStatus(bool(verify_list(plan, verify)))
    if identity is not None:
        known = known_identities(plan)
        if identity not in known:
            listed = ", ".join(sorted(known, key=natural_key)) or "none"
            raise StepError(
                f"{identity!r} is no identity of study {plan.study.name}; there are {listed}"
            )
    if not dry_run:
        claim_run(plan.results)
    failed = []
    for name in leftovers(plan) if identity is None else [identity]:
        try:
            withdraw(
                plan,
                name,
                by=by or getpass.getuser(),
                dry_run=dry_run,
                reason=GONE if sweep else WITHDRAWN,
            )
        except StepError as error:  # the others' files go all the same
            failed.append(str(error))
    release_run()
    if failed:
        raise StepError("; ".join(failed))
    return ExitStatus(0)


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
