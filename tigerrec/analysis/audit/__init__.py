"""Checks on the numbers of a run: each finds something else if a number is wrong or flattering."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig
from pydantic import AfterValidator

from tigerrec import TigerrecError, __version__, pipeline
from tigerrec.analysis.audit import cold, from_lists, prefixes, searched, trained
from tigerrec.analysis.audit.report import page
from tigerrec.analysis.audit.run import AuditedRun, Finding, NotApplicableError, identities
from tigerrec.config import AtLeastOne, ConfigError, build, expanded, folder_of, options
from tigerrec.runtime.provenance import provenance, short_commit
from tigerrec.storage.contracts import read_json
from tigerrec.storage.files import ArtifactError, atomic, locked, sha256_text, write_json
from tigerrec.storage.fingerprints import canonical_json
from tigerrec.storage.stages import open_stage

logger = logging.getLogger(__name__)

CHECKS = {  # in the order of the report
    "leakage": trained.leakage,
    "ties": trained.ties,
    "seen": from_lists.seen,
    "unconstrained": searched.unconstrained,
    "hits": from_lists.hits,
    "diversity": from_lists.diversity,
    "codes": prefixes.given_codes,
    "temperature": prefixes.temperature,
    "buckets": from_lists.by_bucket,
    "cold": cold.cold_items,
    "input": searched.reads_input,
    "facts": from_lists.limits_of_data,
}


def _known(check: str) -> str:
    if check not in CHECKS:
        raise ValueError(f"must be one of {', '.join(CHECKS)}")
    return check


@options
class AuditOptions:
    """What is checked.

    Attributes:
        checks: names of the checks to run; all if empty. The report shows those that were run before too.
        users: a seeded sample of so many users for the checks that search again.
        folder: where `audit.md` and `audit.json` go; `audit/<run>` among the results if None.
    """

    checks: tuple[Annotated[str, AfterValidator(_known)], ...] = ()
    users: AtLeastOne = 5000
    folder: str | None = None


def _key(run: AuditedRun, name: str) -> str:
    """What the result of a check depends on."""
    users = run.users if CHECKS[name].samples else None
    split = [] if run.histories.parts is None else ["split of the data"]
    return sha256_text(canonical_json([__version__, name, identities(run.folders), users, *split]))


def finished(run: AuditedRun, name: str) -> dict[str, Any] | None:
    """The result of a check that was run before on the same run; None where there is none."""
    try:
        saved = read_json(run.work, f"{name}.json", {"key": str, "result": {"commit": str}})
    except ArtifactError:
        return None
    return saved["result"] if saved["key"] == _key(run, name) else None


def run_check(run: AuditedRun, name: str) -> None:
    """Run a check and keep its result, unless it is there."""
    if finished(run, name) is not None:
        logger.info("%s: up to date", name)
        return
    logger.info("%s: %s", name, CHECKS[name].title)
    try:
        finding = CHECKS[name](run)
    except NotApplicableError as reason:
        finding = Finding(f"Not run: {reason}", [])
    result = asdict(finding) | {"commit": short_commit(provenance(0)["git"])}
    write_json(run.work / f"{name}.json", {"key": _key(run, name), "result": result})
    logger.info("%s: %s", name, finding.summary)


def write_report(run: AuditedRun, name: str, command: str, out: Path, failures: Sequence[str]) -> None:
    """`audit.json` and `audit.md` of all checks that are finished, with the names and reasons of those that failed."""
    results = {check: result for check in CHECKS if (result := finished(run, check))}
    commits = ", ".join(sorted({result["commit"] for result in results.values()}))
    commit = open_stage(run.folders["train"], "train").provenance["git"]
    about = (
        f"{len(run.targets):,} users, {run.histories.n_items:,} items; beam {run.evaluation.beam_size}, "
        f"{run.evaluation.precision}. Trained at commit {short_commit(commit)}, checked at "
        f"{commits or 'none: no check is finished'}."
    )
    audit = {
        "run": name,
        "command": command,
        "about": about,
        "provenance": {key: value for key, value in provenance(0).items() if key in ("git", "finished", "machine")},
        "failures": list(failures),
        "checks": [
            {"check": check, "title": CHECKS[check].title, "method": CHECKS[check].method, **result}
            for check, result in results.items()
        ],
    }
    write_json(out / "audit.json", audit)
    with atomic(out / "audit.md") as temporary:
        temporary.write_text(page(audit), encoding="utf-8")


def audit(cfg: DictConfig, command: str = "make audit") -> Path:
    """Bring the run of a configuration up to date and check it; gives the folder of `audit.md` and `audit.json`.

    Checks that were finished before are not run again. One that fails with an error of this package stops no other; the
    report names it, and `command` as what made it.

    Raises:
        TigerrecError: an option is wrong, a stage cannot be used or built, or a check failed.
    """
    chosen = build(cfg.audit, "audit", AuditOptions)
    steps = pipeline.plan(cfg)
    if steps["evaluate"].config.split != "test":
        raise ConfigError("evaluate.split must be test: the checks are of test metrics; leave the option out.")
    pipeline.run(cfg, "evaluate")
    runs = folder_of(cfg, "paths.runs")
    name = steps["train"].folder.relative_to(runs)
    run = AuditedRun(steps, runs / "audit" / name, chosen.users)
    out = expanded(chosen.folder) if chosen.folder else folder_of(cfg, "paths.results") / "audit" / name
    with locked(run.work):
        failures: list[str] = []
        for check in sorted(chosen.checks or CHECKS, key=lambda check: CHECKS[check].trains):
            try:
                run_check(run, check)
            except TigerrecError as error:
                failures.append(f"{check} failed: {error}")
                logger.warning("%s", failures[-1])
            write_report(run, str(name), command, out, failures)
    logger.info("wrote %s", out / "audit.md")
    if failures:
        raise TigerrecError(f"{' '.join(failures)} What is finished stands in {out / 'audit.md'}.")
    return out
