"""Report: what each command has found, on a page or as JSON.  Blocking.

Owns: how a survey, findings, a conversion, an import and a sweep look.
Does not know: where they come from, how a page is written.
Formats: JSON keys are stable and sizes are bytes.
"""

import json
from collections.abc import Callable, Sequence

from tagfs.convert import Conversion
from tagfs.findings import Finding, Findings
from tagfs.importing import Imported
from tagfs.orphans import SweepReport
from tagfs.page import Cell, Page, Size, printable
from tagfs.remarks import Level, Remark, count
from tagfs.survey import Survey

ROWS_SHOWN = 20
"""Findings of one kind that a terminal shows; a pipe and JSON have all."""


def show_survey(survey: Survey, page: Page) -> None:
    page.pairs(
        [
            (survey.kind, survey.path),
            ("shows", survey.store),
            ("read-only", survey.read_only),
            ("format", survey.format),
            ("codec of new lists", survey.codec),
            ("repositories", survey.repositories),
            ("without a list", survey.repositories_without_list),
            ("tags", survey.tags),
            ("plain", Size(survey.plain_bytes)),
            ("stored", None if survey.stored_bytes is None else Size(survey.stored_bytes)),
            ("on disk", Size(survey.disk_bytes)),
            ("ratio", survey.ratio),
            ("ratio on disk", survey.disk_ratio),
            ("problems", survey.problem_count),
        ]
    )
    if survey.largest:
        rows = [(key, tags, Size(size)) for key, tags, size in survey.largest]
        page.table("Largest lists", ("repository", "tags", "plain"), rows)
    problems = survey.problems[:ROWS_SHOWN] if page.is_terminal else survey.problems
    if problems:
        page.table("Problems", ("path", "reason"), [(problem.path, problem.reason) for problem in problems])
    _tell_more(page, survey.problem_count - len(problems), "problems")
    if page.is_terminal and survey.problem_count:
        page.line(f"next: `tagfs check {survey.store or survey.path}` looks closer")


def show_findings(findings: Findings, page: Page, is_repairing: bool) -> None:
    for kind in dict.fromkeys(finding.kind for finding in findings.kept):
        all_of_kind = [finding for finding in findings.kept if finding.kind == kind]
        shown = all_of_kind[:ROWS_SHOWN] if page.is_terminal else all_of_kind
        rows = [(_severity(finding), finding.path, finding.reason, finding.mended or "") for finding in shown]
        header = ("", "path", "reason", "mended")
        width = 4 if is_repairing or not page.is_terminal else 3
        page.table(kind, header[:width], [row[:width] for row in rows])
        _tell_more(page, len(all_of_kind) - len(shown), f"of {kind}")
    _tell_more(page, findings.problems + findings.notes - len(findings.kept), "findings")
    page.pairs(
        [
            ("store", findings.path),
            ("format", findings.format),
            ("lists", findings.lists),
            ("problems", findings.problems),
            ("mended", findings.mended if is_repairing else None),
            ("notes", findings.notes),
        ]
    )
    if page.is_terminal and findings.remaining and not is_repairing:
        page.line(f"next: `tagfs check --repair {findings.path}` mends what can be mended, and deletes no data")


def show_conversion(conversion: Conversion, page: Page) -> None:
    if conversion.unreadable:
        page.table("Unreadable and left as they are", ("path", "reason"), conversion.unreadable)
        _tell_more(page, conversion.unreadable_count - len(conversion.unreadable), "unreadable lists")
    page.pairs(
        [
            ("store", conversion.path),
            ("format", conversion.format),
            ("codec", conversion.codec),
            ("converted", conversion.converted),
            ("unchanged", conversion.unchanged),
            ("unreadable", conversion.unreadable_count),
        ]
    )


def show_import(imported: Imported, page: Page) -> None:
    if imported.refused:
        shown = imported.refused[:ROWS_SHOWN] if page.is_terminal else imported.refused
        page.table("Refused", ("path", "line", "reason"), [(one.path, one.line or "", one.reason) for one in shown])
        _tell_more(page, imported.refused_count - len(shown), "refused lists")
    page.pairs(
        [
            ("store", imported.path),
            ("format", imported.format or None),
            ("source", imported.source),
            ("added", imported.added),
            ("replaced", imported.replaced),
            ("unchanged", imported.unchanged),
            ("refused", imported.refused_count),
            ("no lists", imported.other_count or None),
        ]
    )
    if page.is_terminal and imported.is_dry:
        page.line("nothing was written: this was a dry run")


def import_json(imported: Imported) -> str:
    return json.dumps(
        {
            "path": imported.path,
            "source": imported.source,
            "dry_run": imported.is_dry,
            "format": imported.format or None,
            "added": imported.added,
            "replaced": imported.replaced,
            "unchanged": imported.unchanged,
            "refused_count": imported.refused_count,
            "refused": [{"path": one.path, "line": one.line, "reason": one.reason} for one in imported.refused],
            "other_count": imported.other_count,
            "other": imported.other,
        },
        indent=2,
    )


def show_remarks(remarks: Sequence[Remark], page: Page) -> None:
    width = max((len(one.subject) for one in remarks), default=0)
    for one in remarks:
        if not page.is_terminal:
            page.line("\t".join((one.level.value, one.subject, printable(one.told), printable(one.cure))))
            continue
        page.line(f"{one.level.value:<5} {one.subject:<{width}}  {printable(one.told)}")
        if one.cure:
            page.line(f"{'':<5} {'':<{width}}  → {printable(one.cure)}")


def remarks_json(remarks: Sequence[Remark]) -> str:
    return json.dumps(
        {
            "failures": count(remarks, Level.FAIL),
            "warnings": count(remarks, Level.WARN),
            "remarks": [
                {"level": one.level.value, "subject": one.subject, "told": one.told, "cure": one.cure or None}
                for one in remarks
            ],
        },
        indent=2,
    )


def show_sweep(found: SweepReport, page: Page) -> None:
    if found.orphans:
        rows = [
            (
                str(one.key),
                one.state,
                _known(one.tags),
                _known(one.plain_bytes, Size),
                Size(one.stored_bytes),
                one.reason,
            )
            for one in found.orphans
        ]
        page.table("Orphans", ("repository", "", "tags", "plain", "stored", ""), rows)
    if found.namespaces:
        page.table("Namespaces without a repository", ("namespace",), [(name,) for name in found.namespaces])
    page.pairs(
        [
            ("store", found.path),
            ("inventory", found.inventory),
            ("lists", found.lists),
            ("expected", found.expected),
            ("orphans", len(found.orphans)),
            ("deleted", None if found.is_dry else found.count("deleted")),
            ("left", None if found.is_dry else found.count("left")),
            ("held", found.count("held")),
            ("failed", None if found.is_dry else found.count("failed")),
            ("stored", Size(sum(one.stored_bytes for one in found.orphans))),
        ]
    )


def sweep_json(found: SweepReport) -> str:
    return json.dumps(
        {
            "path": found.path,
            "inventory": found.inventory,
            "dry_run": found.is_dry,
            "lists": found.lists,
            "expected": found.expected,
            "refusal": found.refusal,
            "orphans": [
                {
                    "repository": str(one.key),
                    "state": one.state,
                    "tags": one.tags,
                    "plain_bytes": one.plain_bytes,
                    "stored_bytes": one.stored_bytes,
                    "reason": one.reason,
                }
                for one in found.orphans
            ],
            "namespaces": found.namespaces,
        },
        indent=2,
    )


def _known(value: int | None, kind: Callable[[int], Cell] = int) -> Cell:
    return "?" if value is None else kind(value)


def survey_json(survey: Survey) -> str:
    return json.dumps(
        {
            "kind": survey.kind,
            "path": survey.path,
            "store": survey.store,
            "read_only": survey.read_only,
            "format": survey.format,
            "codec": survey.codec,
            "repositories": survey.repositories,
            "repositories_without_list": survey.repositories_without_list,
            "tags": survey.tags,
            "plain_bytes": survey.plain_bytes,
            "stored_bytes": survey.stored_bytes,
            "disk_bytes": survey.disk_bytes,
            "ratio": survey.ratio,
            "disk_ratio": survey.disk_ratio,
            "largest": [{"repository": key, "tags": tags, "plain_bytes": size} for key, tags, size in survey.largest],
            "problem_count": survey.problem_count,
            "problems": [{"path": problem.path, "reason": problem.reason} for problem in survey.problems],
        },
        indent=2,
    )


def findings_json(findings: Findings) -> str:
    return json.dumps(
        {
            "path": findings.path,
            "format": findings.format,
            "lists": findings.lists,
            "problems": findings.problems,
            "mended": findings.mended,
            "notes": findings.notes,
            "findings": [
                {
                    "kind": finding.kind,
                    "severity": _severity(finding),
                    "path": finding.path,
                    "reason": finding.reason,
                    "mended": finding.mended,
                    "lines": [{"line": number, "reason": reason} for number, reason in finding.lines],
                }
                for finding in findings.kept
            ],
            "findings_omitted": findings.problems + findings.notes - len(findings.kept),
        },
        indent=2,
    )


def _severity(finding: Finding) -> str:
    return "problem" if finding.is_problem else "note"


def _tell_more(page: Page, count: int, of_what: str) -> None:
    if count > 0:
        page.line(f"and {count} more {of_what}" + ("; --json has all that are kept" if page.is_terminal else ""))
