"""Checks on the numbers of a run: each trains, searches or counts something that would come out otherwise if a number
were wrong or flattering."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from tigerrec import TigerrecError, __version__, artifacts, files, pipeline
from tigerrec.config import ConfigError, build
from tigerrec.provenance import provenance, short_commit
from tigerrec.ranges import at_least_one

if TYPE_CHECKING:
    from tigerrec.audit.run import AuditedRun

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AuditOptions:
    """What is checked.

    Args:
        checks: names of the checks to run; all if empty. The report shows those that were run before too.
        users: a seeded sample of so many users for the checks that search again.
        folder: where `audit.md` and `audit.json` go; `audit/<run>` among the results if None.
    """

    checks: tuple[str, ...] = ()
    users: int = 5000
    folder: str | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.checks if name not in CHECKS]
        if unknown:
            raise ValueError(f"checks={unknown[0]} is no check; allowed: {', '.join(CHECKS)}")
        at_least_one(self, "users")


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        title: what it is called in the report.
        method: what is done, in plain words.
        function: the dotted path, below this package, of a function of the audited run that gives a `Finding`.
        samples: whether it reads a sample of users.
        trains: whether it trains again; such checks run last.
    """

    title: str
    method: str
    function: str
    samples: bool = False
    trains: bool = False


CHECKS: dict[str, Check] = {
    "leakage": Check(
        "Do held-out items enter training?",
        "The test and the validation item of every user are replaced by random other items, and the generator is "
        "trained again with the same seed, options and "
        "Semantic IDs, with one validation, at its end. If the weights have the same bytes, no held-out item entered "
        "training. A run that validated more than "
        "once is trained again with its validations and other test items alone: the checkpoint it chose must be the "
        "same. Vectors that are made of "
        "interactions are computed again too.",
        "trained.leakage",
        trains=True,
    ),
    "ties": Check(
        "What does the order of equal times decide?",
        "Interactions of a user with equal times stand in the order of the file. Here that order is reversed, "
        "everything else kept, and the generator trained "
        "again with the same seed, options and Semantic IDs. Part of the targets are then others: the difference is "
        "that of two test sets.",
        "trained.ties",
        trains=True,
    ),
    "seen": Check(
        "Seen items masked or kept?",
        "The same generator, once with the items of the user's history left out inside the search, once with them.",
        "from_lists.seen",
    ),
    "unconstrained": Check(
        "What does the trie do?",
        "The same beam search without the trie: any token of the vocabulary may follow. Ids that no item has are "
        "counted, then dropped.",
        "searched.unconstrained",
        samples=True,
    ),
    "hits": Check(
        "Hits on items or on codes?",
        "A hit on codes without suffix counts every item that has them; of a list, equal codes count once. Inflation "
        "is what that adds to a metric of items.",
        "from_lists.hits",
    ),
    "diversity": Check(
        "How many items are ever recommended?",
        "Items in all top 10 lists, beside those of popularity and beside the test targets (one a user, so fewer in "
        "all). The Gini index is 0 where all items "
        "are shown equally often and near 1 where few are shown. Most popular: by training interactions.",
        "from_lists.diversity",
    ),
    "buckets": Check(
        "For which targets and users does it work?",
        "Users by how often training holds their target, and by how many items are known of them.",
        "from_lists.by_bucket",
    ),
    "cold": Check(
        "Does it recommend new items?",
        "5 % of the items, each the target of some user, are taken out of all histories and of the tokenizer's "
        "vectors, as if they had never been there; "
        "tokenizer and generator are fitted again with the same seeds and options. Then the frozen tokenizer gives "
        "these items ids, they join the trie, and "
        "users whose target is one of them are ranked for; of their histories the new items are missing.",
        "cold.cold_items",
        trains=True,
    ),
    "input": Check(
        "Does the generator read the history?",
        "The same generator is given other histories for the same users; masked is always the user's own. Of another "
        "user: of one drawn at random, which is "
        "chance level.",
        "searched.reads_input",
        samples=True,
    ),
    "facts": Check(
        "What does the data make impossible or ambiguous?",
        "Counted in the prepared data and in the Semantic IDs.",
        "from_lists.facts",
    ),
}


def _key(run: AuditedRun, name: str) -> str:
    """What the result of a check depends on."""
    stages = {key: artifacts.input_record(step.folder) for key, step in run.steps.items()}
    made_of = {key: [record["fingerprint"], record["content"]] for key, record in stages.items()}
    return files.sha256_text(
        artifacts.canonical_json([__version__, name, made_of, run.users if CHECKS[name].samples else None])
    )


def finished(run: AuditedRun, name: str) -> dict[str, Any] | None:
    """The result of a check that was run before on the same run; None where there is none."""
    try:
        saved = artifacts.read_json(run.work, f"{name}.json")
    except artifacts.ArtifactError:
        return None
    return (
        saved["result"]
        if isinstance(saved, dict) and saved.get("key") == _key(run, name) and "commit" in saved["result"]
        else None
    )


def run_check(run: AuditedRun, name: str) -> None:
    """Run a check and keep its result, unless it is there."""
    from tigerrec.audit.run import Finding, NotApplicableError

    if finished(run, name) is not None:
        logger.info("%s: up to date", name)
        return
    logger.info("%s: %s", name, CHECKS[name].title)
    module, _, function = CHECKS[name].function.rpartition(".")
    try:
        found = getattr(importlib.import_module(f"{__name__}.{module}"), function)(run)
    except NotApplicableError as reason:
        found = Finding(f"Not run: {reason}", [])
    files.write_json(
        run.work / f"{name}.json",
        {
            "key": _key(run, name),
            "result": {"summary": found.summary, "rows": found.rows, "commit": short_commit(provenance(0)["git"])},
        },
    )
    logger.info("%s: %s", name, found.summary)


def write_report(run: AuditedRun, name: str, command: str, out: Path, failures: Sequence[str]) -> None:
    """`audit.json` and `audit.md` of all checks that are finished, with the names and reasons of those that failed."""
    from tigerrec.audit.report import page

    results = {check: finished(run, check) for check in CHECKS}
    trained = artifacts.open_stage(run.trained, "train").provenance
    facts = {key: value for key, value in provenance(0).items() if key in ("git", "finished", "machine")}
    commits = sorted({found["commit"] for found in results.values() if found})
    about = (
        f"{len(run.targets):,} users, {run.histories.n_items:,} items; beam {run.evaluation.beam_size}, "
        f"{run.evaluation.precision}. "
        f"Trained at commit {short_commit(trained['git'])}, checked at "
        f"{', '.join(commits) or 'none: no check is finished'}."
    )
    audit = {
        "run": name,
        "command": command,
        "about": about,
        "provenance": facts,
        "failures": list(failures),
        "checks": [
            {"check": check, "title": CHECKS[check].title, "method": CHECKS[check].method, **found}
            for check, found in results.items()
            if found
        ],
    }
    files.write_json(out / "audit.json", audit)
    with files.atomic(out / "audit.md") as temporary:
        temporary.write_text(page(audit), encoding="utf-8")


def audit(cfg: DictConfig, command: str = "make audit") -> Path:
    """Bring the run of a configuration up to date and check it; checks that were finished before are not run again.

    A check that fails with an error of this package stops no other; the report names it.

    Args:
        cfg: a composed configuration.
        command: what the report names as the command that made it.

    Returns:
        The folder of `audit.md` and `audit.json`.

    Raises:
        TigerrecError: an option is wrong, a stage cannot be used or built, or a check failed.
    """
    options = build(cfg.audit, "audit", AuditOptions)
    steps = pipeline.plan(cfg)
    if steps["evaluate"].config.split != "test":
        raise ConfigError("evaluate.split must be test: the checks are of test metrics; leave the option out.")
    pipeline.run(cfg, "evaluate")
    from tigerrec.audit.run import AuditedRun

    runs = steps["prepare"].folder.parent
    name = steps["train"].folder.relative_to(runs)
    run = AuditedRun(steps, runs / "audit" / name, options.users)
    out = Path(options.folder) if options.folder else Path(cfg.paths.results) / "audit" / name
    wanted = sorted(options.checks or CHECKS, key=lambda check: CHECKS[check].trains)
    with files.locked(run.work):
        failures: list[str] = []
        for check in wanted:
            try:
                run_check(run, check)
            except TigerrecError as error:
                logger.warning("%s failed: %s", check, error)
                failures.append(f"{check} failed: {error}")
            write_report(run, str(name), command, out, failures)
    logger.info("wrote %s", out / "audit.md")
    if failures:
        raise TigerrecError(f"{' '.join(failures)} What is finished stands in {out / 'audit.md'}.")
    return out


def command(cfg: DictConfig) -> None:
    """What the script does: audit, print the folder of the report as the last line; end with one sentence on a user's
    error."""
    with pipeline.reporting():
        folder = audit(cfg, pipeline.told_command("audit", pipeline.given_overrides()))
    print(folder, flush=True)
