"""What people see of a run: every count and reason is in the report, a table stays a table whatever a model says, progress shows for long stages only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import report
from tasks.corpus.manifest import Manifest


def manifest(stage, seen=10, rejected=None, skipped=False, **info):
    rejected = rejected or {}
    kept = seen - sum(rejected.values())
    made_of, about = {"stage": stage}, {"seconds": 2.5}
    return Manifest(f"stages/{stage}/t-0123456789", "f", "c", made_of, {}, (), seen, kept, rejected, info, True, about, skipped)


def chain(**more):
    return [
        manifest("ingest", 3, source="commoncrawl", role="source"),
        manifest("ingest", 2, source="files", role="evaluation"),
        manifest("extract", 100, {"not_html": 10, "empty": 5}),
        manifest("filter", 85, {f"rule_{n}": n for n in range(1, 7)}),
        manifest("decontaminate", 64, {"contaminated_x": 4}, skipped=True),
        manifest("evaluate", 5, **more),
    ]


def rows(text, title):
    """Cells of the table under a heading."""
    section = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line[2:-2].split(" | ")] for line in section.splitlines() if line.startswith("|")][2:]


def test_every_stage_and_every_reason_is_in_the_report():
    text = report.markdown("Build t v1", chain(), {}, {}, [])
    assert [cells[0] for cells in rows(text, "Stages")] == [
        "ingest commoncrawl",
        "ingest evaluation",
        "extract",
        "filter",
        "decontaminate",
        "evaluate",
    ]
    reasons = {(cells[0], cells[1]): cells[2:] for cells in rows(text, "Why records were set aside")}
    assert reasons == {
        ("extract", "not_html"): ["10", "10.0%"],
        ("extract", "empty"): ["5", "5.0%"],
        **{("filter", f"rule_{n}"): [str(n), f"{n / 85:.1%}"] for n in range(1, 7)},
        ("decontaminate", "contaminated_x"): ["4", "6.2%"],
    }
    assert "**60 documents** of 100 records (60%)" in text
    assert "5 stages ran in 12 s, 1 were complete before" in text


def test_a_long_list_of_reasons_is_cut_in_the_closing_table_only():
    cells = report.row(chain()[3])
    assert cells["rejected"] == "rule_6 6, rule_5 5, rule_4 4, rule_3 3, 2 more"
    assert (cells["in"], cells["out"], cells["seconds"]) == ("85", "64", "2.5")


def test_scores_stand_beside_their_parts():
    metrics = {"choice": 0.5, "choice/en": 0.25, "tuned/bits_per_byte": 2.0, "tuned/bits_per_byte/zh": 3.0, "samples/stopped": 1.0}
    assert rows(report.markdown("t", [], metrics, {}, []), "Evaluation") == [
        ["choice", "0.5000", "en 0.2500"],
        ["samples/stopped", "1.0000", ""],
        ["tuned/bits_per_byte", "2.0000", "zh 3.0000"],
    ]


@given(st.text(), st.text())
def test_whatever_a_model_says_stays_in_its_cell(prompt, answer):
    text = report.markdown("t", chain(samples=[{"prompt": prompt, "text": answer}, {"prompt": "p", "text": "a"}]), {}, {}, [])
    lines = [line for line in text.partition("## Answers\n")[2].partition("\n## ")[0].split("\n") if line.startswith("|")]
    assert len(lines) == 4
    assert all(line.replace("\\|", "").count("|") == 3 for line in lines)


def test_links_are_links_only_where_a_browser_can_follow():
    text = report.markdown("t", [], {}, {"MLflow": "http://h:1/#/x", "Store": "/some/where"}, [])
    assert "- MLflow: [http://h:1/#/x](http://h:1/#/x)\n- Store: `/some/where`" in text


@given(st.lists(st.floats(0.01, 20), min_size=1, max_size=300))
def test_a_curve_has_its_highest_and_lowest_column_where_they_are(losses):
    lines = report.sparkline([{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)])
    assert len(lines) == 9
    assert lines[-1].strip() == f"step 1 … {len(losses)}"
    if len(losses) <= 60 and max(losses) - min(losses) > 1e-6:
        assert lines[0][10:][losses.index(max(losses))] == "█"
        assert lines[6][10:][losses.index(min(losses))] == " " or len(set(losses)) == 1


def test_no_curve_without_losses():
    assert report.sparkline([{"step": 1, "valid_loss": 2.0}]) == []
    assert "## Loss" not in report.markdown("t", [], {}, {}, [])


@pytest.fixture
def artifacts(monkeypatch):
    """Calls that reach Prefect."""
    calls = []
    monkeypatch.setattr("prefect.artifacts.create_progress_artifact", lambda share, key, description: calls.append((key, share)) or "id")
    monkeypatch.setattr("prefect.artifacts.update_progress_artifact", lambda artifact, share: calls.append((artifact, share)))
    return calls


def test_a_short_stage_shows_no_artifact_and_a_long_one_goes_to_100(artifacts, monkeypatch):
    heard, now = [], [0.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: now[0])
    token = report.listener.set(lambda *words: heard.append(words))
    try:
        with report.watch("extract") as progress:
            progress(1, 4, "documents")
        assert artifacts == []
        with report.watch("filter") as progress:
            for done in (1, 2, 3):
                now[0] += report.ARTIFACT_EVERY + 1
                progress(done, 4, "documents")
    finally:
        report.listener.reset(token)
    assert artifacts == [("filter-progress", 25.0), ("id", 50.0), ("id", 75.0), ("id", 100.0)]
    assert heard == [
        ("extract", 0, 0, ""),
        ("extract", 1, 4, "documents"),
        ("filter", 0, 0, ""),
        *(("filter", d, 4, "documents") for d in (1, 2, 3)),
    ]


@pytest.mark.parametrize("stage", ["extract", "quality_model", "ingest commoncrawl", "ingest CC-MAIN.1_x"])
def test_prefect_takes_the_key_of_every_stages_progress(stage):
    from prefect.artifacts import ProgressArtifact

    assert ProgressArtifact(progress=1.0, key=report.progress_key(stage)).key
