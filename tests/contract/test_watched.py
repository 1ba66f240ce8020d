"""The names that operators rely on are those of the code: metrics in the alerts, events in the log."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.contract.test_code import PACKAGES, files, parse
from tests.contract.test_docs import ROOT, section

PROMETHEUS = ROOT / "compose" / "prometheus"
# What a histogram, or a summary, has behind its name.
SAMPLES = ("_bucket", "_sum", "_count")


def alerts() -> list[dict[str, Any]]:
    document = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def test_every_alert_is_made_of_metrics_that_there_are():
    metrics = set(re.findall(r"\| `(rollcall_[a-z_]+)` \|", section("metrics-and-logs", "## Metrics")))
    known = metrics | {name + sample for name in metrics for sample in SAMPLES}
    for alert in alerts():
        used = set(re.findall(r"\brollcall_[a-z_]+", alert["expr"]))
        assert used and used <= known, alert["alert"]


def test_every_alert_says_what_it_means_and_is_named_and_tested():
    names = [alert["alert"] for alert in alerts()]
    assert len(names) == len(set(names))
    for alert in alerts():
        assert alert["annotations"]["summary"] and alert["annotations"]["description"]
        assert alert["labels"]["severity"] in ("page", "ticket")
    document = yaml.safe_load((PROMETHEUS / "rules.test.yml").read_text())
    (wrong,) = [test for test in document["tests"] if test["name"] == "everything is wrong"]
    (expected,) = wrong["promql_expr_test"]
    assert set(re.findall(r'alertname="(\w+)"', str(expected["exp_samples"]))) == set(names)
    assert set(re.findall(r"`(Rollcall\w+)`", section("metrics-and-logs", "## Alerts"))) == set(names)


def logged(path: Path) -> Iterator[str | None]:
    """The event of each log line in a file, also of one that is chosen in place; None for what is no constant."""
    for node in ast.walk(parse(path)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and (node.func.value.id == "log" or (node.func.value.id, node.func.attr) == ("logs", "write"))
        ):
            event = node.args[0]
            for each in (event.body, event.orelse) if isinstance(event, ast.IfExp) else (event,):
                yield each.value if isinstance(each, ast.Constant) and isinstance(each.value, str) else None


def test_every_event_of_the_log_is_named_and_every_named_event_exists():
    events = {event for path in files(*PACKAGES) for event in logged(path)}
    assert all(event and re.fullmatch(r"[a-z]+(\.[a-z_]+)+", event) for event in events), "dotted, constant"
    assert events == set(re.findall(r"^\| `([a-z._]+)` \|", section("metrics-and-logs", "## Logs"), re.M))
