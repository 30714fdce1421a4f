"""The commands that have arguments of their own, not those of a configuration."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tigerrec import TigerrecError
from tigerrec.config import compose, expanded
from tigerrec.search.options import SCORES

TOOLS = {
    "demo": "the whole pipeline on the bundled sample, then a recommendation",
    "recommend": "the best items for a history of items",
    "serve": "recommendations over HTTP, and a page to look at them",
    "export": "a trained run as one self-contained folder",
    "push": "a trained run or an export to the Hugging Face Hub",
    "add": "new items for a trained run, without training",
    "report": "a page about a run or a table, for the browser",
    "compare-runs": "trained runs as a table and a picture",
    "compare-tables": "tables of results side by side",
}


def _folders(text: str) -> list[Path]:
    return [expanded(folder) for folder in text.split(",")]


def parser_of(name: str) -> argparse.ArgumentParser:
    """The arguments of a command that has some of its own."""
    parser = argparse.ArgumentParser(prog=f"tigerrec {name}", description=f"{TOOLS[name][0].upper()}{TOOLS[name][1:]}.")
    if name == "compare-runs":
        parser.add_argument(
            "folders", nargs="+", type=expanded, help="train folders, or copies of their manifest and log"
        )
        parser.add_argument(
            "--plot", type=expanded, help="a picture of validation over minutes of training: .png or .svg"
        )
    elif name == "compare-tables":
        from tigerrec.analysis.report import METRICS

        several = "folders that `tigerrec table` printed; `first,second`: one column, each row of the first that has it"
        parser.add_argument("columns", nargs="+", type=_folders, help=several)
        parser.add_argument(
            "--metric", choices=METRICS, action="append", help="once for each; HR@10 and NDCG@10 by default"
        )
        parser.add_argument("--whole", action="store_true", help="without rows like `rkmeans:codes`")
    elif name == "report":
        about = parser.add_mutually_exclusive_group(required=True)
        about.add_argument("--run", type=expanded, help="evaluate folder, or a train folder with one evaluation")
        about.add_argument("--table", type=expanded, help="folder of a table of results")
        parser.add_argument("--out", type=expanded, help="the page to write; report.html in the folder by default")
    else:
        from_hub = "" if name in ("export", "push") else "; also as owner/name on the Hugging Face Hub"
        parser.add_argument("model", type=expanded, help=f"folder of a finished train stage, or an export{from_hub}")
        if name in ("recommend", "serve"):
            scores = "what items are ranked by; by default `hybrid` of a generator with an item head, else `codes`"
            parser.add_argument("--scores", choices=SCORES, help=scores)
        if name == "recommend":
            _add_requests(parser)
        if name == "serve":
            parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 127.0.0.1 by default")
            parser.add_argument("--port", type=int, default=8000, help="8000 by default; 0 takes a free one")
            parser.add_argument(
                "--token", default=os.environ.get("TIGERREC_TOKEN") or None, help="what requests have to bring"
            )
            parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
            parser.add_argument("--waiting", type=int, default=1024, help="requests that may wait; 1024 by default")
        if name == "add":
            columns = "item_id and any of title, brand, categories, price, text, vector, generator_vector"
            parser.add_argument("--items-file", required=True, type=expanded, help=f"table of new items: {columns}")
        if name in ("add", "export"):
            parser.add_argument("--out", required=True, type=expanded, help="new folder, or an older export to replace")
        if name == "push":
            parser.add_argument("name", help="<owner>/<name> on the hub; made where it is not there")
            parser.add_argument("--private", action="store_true", help="seen by nobody but its owner")
    return parser


def arguments_of(name: str, given: Sequence[str]) -> argparse.Namespace:
    """What was given to a command, `recommend` with further arguments as `further`; the process ends where it cannot be
    taken."""
    parser = parser_of(name)
    if name != "recommend":
        return parser.parse_args(given)
    options, further = parser.parse_known_args(given)
    options.further = further
    return options


def _add_requests(parser: argparse.ArgumentParser) -> None:
    """The arguments that say for whom, and what may be recommended; further ones say how a table is written."""
    parser.usage = (
        "tigerrec recommend MODEL (--items ITEMS | --out FILE [--histories FILE] [dataset.<option>=<value> …])"
    )
    one = parser.add_argument_group("for one history").add_mutually_exclusive_group()
    one.add_argument("--items", help="item ids, oldest first, separated by commas")
    one.add_argument("--item", action="append", help="one id, as it is; repeated, oldest first")
    many = parser.add_argument_group("for many users")
    many.add_argument("--users", help="all, or a file of user ids; all by default")
    many.add_argument(
        "--histories", type=expanded, help="table of interactions; by default those of the model's data set"
    )
    many.add_argument("--out", type=expanded, help="file to write: .parquet, .csv or .jsonl")
    what = parser.add_argument_group("what may be recommended")
    what.add_argument("--k", type=int, default=10, help="how many items a list; 10 by default")
    what.add_argument("--allow", type=expanded, help="file of item ids: none but these")
    what.add_argument("--deny", type=expanded, help="file of item ids: none of these")
    what.add_argument("--category", help="none but items of this category")
    what.add_argument("--keep-seen", action="store_true", help="also items of the history")


def result_of(name: str, options: argparse.Namespace) -> Any:
    """What a command makes of its arguments, to print. Raises TigerrecError if it cannot."""
    if name == "recommend":
        return _recommended(options)
    if name == "serve":
        leave_a_core()
        from tigerrec.serving.serve import serve

        return serve(
            options.model, options.host, options.port, options.token, options.device, options.waiting, options.scores
        )
    if name == "export":
        from tigerrec.serving.export import export

        return export(options.model, options.out)
    if name == "push":
        from tigerrec.serving.export import push

        return push(options.model, options.name, options.private)
    if name == "add":
        from tigerrec.serving.new_items import add_items

        return add_items(options.model, options.items_file, options.out)
    if name == "report":
        from tigerrec.analysis.report import report_run, report_table

        return report_run(options.run, options.out) if options.run else report_table(options.table, options.out)
    if name == "compare-tables":
        from tigerrec.analysis.side_by_side import SHOWN, side_by_side

        return side_by_side(options.columns, options.metric or SHOWN, options.whole)
    from tigerrec.analysis.training_runs import plot_validation, read_runs, training_table

    runs = read_runs(options.folders)
    if options.plot:
        plot_validation(runs, options.plot)
    return training_table(runs)


def leave_a_core() -> None:
    """Let ranking have all cores but one, which reads requests and writes answers, unless OMP_NUM_THREADS says
    otherwise; it has to be said before torch is imported."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) - 1)))


def _recommended(options: argparse.Namespace) -> Any:
    """The recommendations for one history as text, or the file of those for many users."""
    from tigerrec.serving.rules import Rules, read_ids

    of_table = _dataset_options(options.further)
    allow = read_ids(options.allow) if options.allow else None
    deny = read_ids(options.deny, may_be_empty=True) if options.deny else frozenset()
    rules = Rules(allow, deny, options.category)
    if options.items is not None or options.item:
        from tigerrec.serving.recommender import Recommender

        if options.users or options.histories or options.out:
            raise TigerrecError("--items and --item are for one history; leave out --users, --histories and --out.")
        history = options.item or [item.strip() for item in options.items.split(",") if item.strip()]
        recommender = Recommender.from_pretrained(options.model, scores=options.scores)
        return recommender.report(history, options.k, not options.keep_seen, rules)
    if options.out is None:
        raise TigerrecError(
            "Nobody to recommend to: give `--items <item id>,<item id>`, or `--users all --out <file>.parquet`."
        )
    from tigerrec.serving.everybody import recommend_all

    return recommend_all(
        options.model, options.out, users=options.users, histories=options.histories,
        options=of_table, k=options.k, mask_seen=not options.keep_seen, rules=rules,
        scores=options.scores,
    )  # fmt: skip


def _dataset_options(given: Sequence[str]) -> dict[str, Any]:
    """Options of a data set by name. Raises TigerrecError if one is none."""
    foreign = [option for option in given if not option.startswith("dataset.")]
    if foreign:
        raise TigerrecError(
            f"{foreign[0]} is no option of recommend (`tigerrec recommend --help`), nor of tables, as "
            "`dataset.user_column=customer`."
        )
    composed = OmegaConf.to_container(compose(["dataset=tables", *given]).dataset)
    names = [option.removeprefix("dataset.").partition("=")[0] for option in given]
    return {name: composed[name] for name in names}  # type: ignore[call-overload, index]
