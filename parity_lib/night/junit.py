"""The nightly run as JUnit XML for CI: one test case for each cell, red control and page."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from parity_lib.base.files import write_atomic
from parity_lib.base.names import Outcome
from parity_lib.records.night_record import CellRecord, Night, PageRecord

FILE_NAME = "junit.xml"
PAGES = "pages"
# What XML 1.0 cannot hold, not even escaped: control characters, lone surrogates, two non-characters.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def write_junit(night: Night, folder: Path) -> Path:
    """Write ``junit.xml`` beside ``night.json``, atomically.

    A divergence is a failure and carries its greppable lines; a gap or an uncaught control is an error; NOT_RUN is
    skipped, with the reason. A divergence that the plan expects, and a control that was caught, pass.

    Raises:
        RecordError: it cannot be written.
    """
    cases = [_cell_case(record) for record in night.cells] + [_page_case(page) for page in night.pages]
    counts = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": sum(case.find("error") is not None for case in cases),
        "skipped": sum(case.find("skipped") is not None for case in cases),
    }
    numbers = {name: str(count) for name, count in counts.items()} | {"time": f"{night.seconds:.3f}"}
    root = ElementTree.Element("testsuites", {"name": "parity nightly"} | numbers)
    named = {"name": night.plan, "timestamp": night.started_at[:19], "hostname": night.host}
    suite = ElementTree.SubElement(root, "testsuite", named | numbers)
    properties = ElementTree.SubElement(suite, "properties")
    for name in (
        "run_id",
        "title",
        "headline",
        "plan_sha256",
        "machine_class",
        "outcome",
        "exit_status",
        "interrupted",
    ):
        value = _clean(str(getattr(night, name)))
        ElementTree.SubElement(properties, "property", {"name": name, "value": value})
    suite.extend(cases)
    ElementTree.indent(root, " ")
    path = folder / FILE_NAME
    write_atomic(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")
    return path


def _cell_case(record: CellRecord) -> ElementTree.Element:
    cell = record.cell
    parts = [cell.quant, cell.isa, cell.stack, cell.compute, *(["control"] if record.control else []), record.fault]
    case = _case(" ".join(part for part in parts if part), cell.model, record.seconds)
    text = "\n".join([*record.lines, *([f"page: {record.html}"] if record.html else [])])
    if record.outcome is Outcome.NOT_RUN:
        ElementTree.SubElement(case, "skipped", {"message": _clean("; ".join(record.causes))})
    elif not record.good:
        kind = "failure" if record.outcome in (Outcome.DIVERGED, Outcome.PARITY) else "error"
        _add(case, kind, _message(record), record.outcome.value, text)
    return case


def _message(record: CellRecord) -> str:
    broken = [f"lowest broken rung {record.lowest_broken}"] if record.lowest_broken else []
    return f"{record.outcome}: {'; '.join([*broken, *record.causes]) or 'not as the plan expects'}"


def _page_case(page: PageRecord) -> ElementTree.Element:
    case = _case(page.name, PAGES, 0.0)
    if page.outcome is not Outcome.PARITY:
        causes = "; ".join(page.causes)
        _add(case, "error", f"{page.outcome}: {causes}", page.outcome.value, causes)
    return case


def _case(name: str, classname: str, seconds: float) -> ElementTree.Element:
    fields = {"name": _clean(name), "classname": _clean(classname), "time": f"{seconds:.3f}"}
    return ElementTree.Element("testcase", fields)


def _add(case: ElementTree.Element, kind: str, message: str, word: str, text: str) -> None:
    element = ElementTree.SubElement(case, kind, {"message": _clean(message), "type": word})
    element.text = _clean(text)


def _clean(text: str) -> str:
    """Return the text with what XML cannot hold made visible: a test case must never be lost over one byte."""
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
