"""The command ``report``: what its pages show, in HTML, in Markdown and in a browser."""

import base64
import json
import re
import shutil
import struct
import subprocess

import numpy as np
import pytest
from report_pages import SECTIONS, report
from report_runs import evaluation_run, sweep, training_run, write_lines

from refine_pl.evaluation.bootstrap import paired_difference
from refine_pl.figures.plots import running_mean
from refine_pl.report import paper
from refine_pl.report.sections.settings import differences, of_one_class
from refine_pl.training.metrics import format_value, metric_of, metrics

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;{{ 7 * 7 }} | *b* \\"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [
        training_run(root / "tiny" / "version_0", text=HOSTILE),
        training_run(root / "tiny" / "version_1", seed=1, config={"num_segments": 4}),
        evaluation_run(root / "sft", rows=12),
        evaluation_run(root / "refine", 1, right=0.8, text=HOSTILE, source="other"),
        sweep(root / "sweep"),
    ]


@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, *report(out, *folders)


def test_every_part_is_there(whole):
    out, outcome, html, page, markdown = whole
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == SECTIONS
    assert re.findall(r"^## (.*)$", markdown, re.MULTILINE) == SECTIONS
    assert [link for link in page.links if link.startswith("#")] == [
        f"#{name}" for name in page.sections
    ]
    shown_files = outcome.stdout.splitlines()
    assert shown_files[:2] == [str(out / "report.html"), str(out / "report.md")]
    names = re.findall(r"\]\(figures/(\w+\.png)\)", markdown)
    assert sorted(names) == sorted(p.name for p in (out / "figures").iterdir())
    assert shown_files[2] == f"{out / 'figures'}: {len(names)} figures"
    assert len(names) == page.tags.count("img") >= 15


def test_the_page_needs_nothing_else(whole):
    _, _, html, page, _ = whole
    for link in page.links:
        assert link.startswith(("#", "data:")), link
    assert not {"script", "iframe", "object", "embed", "form"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?://", html)
    assert "default-src 'none'" in html
    assert page.tags.count("source") == page.tags.count("img")  # one for each theme
    assert "prefers-color-scheme: dark" in html
    pictures = [base64.b64decode(x.partition(",")[2]) for x in page.links if "image/png" in x]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert len(html) < 3e6


def test_what_models_write_stays_text(whole):
    _, _, html, page, markdown = whole
    assert "<script" not in html
    assert "onerror=alert" not in "".join(page.links)
    assert page.tags.count("img") == html.count("data:image/png") / 2
    assert HOSTILE in page.text("rollouts")
    assert HOSTILE in page.text("evaluation")
    assert "{{ 7 * 7 }}" in html
    assert "<script" not in markdown
    assert "<img" not in markdown
    rows = [line for line in markdown.splitlines() if "alert(1)" in line and line.startswith("|")]
    assert rows
    # Every cell boundary is ours: the bars of the text are escaped.
    assert all(len(re.findall(r"(?<!\\)\|", row)) in (5, 6) for row in rows)


def test_runs_and_what_differs_between_them(whole):
    page = whole[3]
    runs = page.text("runs")
    for word in ("tiny/version_0", "tiny/version_1", "DeltaNet (hidden_size 16", "greedy"):
        assert word in runs
    differing = page.text("settings-that-differ")
    assert "model.num_segments 2 4" in differing
    assert "model.source model other" in differing
    assert "hidden_size" not in differing


def test_validations_before_and_after(whole):
    text = whole[3].text("validation")
    assert "held out before after warm-up after refine" in text
    assert "iteration 2" not in text  # inside a stage
    assert "next-token loss, nats per token 5.5000 5.8000 6.1000" in text
    assert "exact match of rollout tokens 2.00% 32.00% 62.00%" in text
    assert "The last validation of each run" in text


def test_curves_are_overlaid_and_still_ones_only_named(whole):
    out, _, _, page, _ = whole
    names = {path.stem for path in (out / "figures").iterdir()}
    assert {"curve_train_ntp_loss", "curve_reward_total_mean", "curve_mine_own"} <= names
    assert not {"curve_policy_ratio", "curve_reward_total_std", "curve_run_stage"} & names
    assert "policy/ratio 1.0000" in page.text("curves")
    assert {"rewards_0_match", "rewards_1_match", "entropy_0_1", "entropy_0_3"} <= names


def test_own_scores_stand_beside_the_papers(whole):
    text = whole[3].text("evaluation")
    lines = [line.split() for line in text.split("\n")]
    assert ["LaCT-760M", "paper:", "as", "published", "98.8"] in lines
    assert ["LaCT-760M", "paper:", "SFT", "mid", "19.5"] in lines  # SQuAD at 4,096, not at 512
    assert "ruler_squadqa, 512" in text
    assert "Beside the paper: LongBench" not in text
    assert "prompts without their middle" in text
    assert "arXiv 2602.16704" in text
    assert "ruler_qa_official" in text
    assert "prompts cut" in text


def test_lengths_that_the_paper_does_not_have(tmp_path):
    short = evaluation_run(tmp_path / "a", places=[("niah_single", 512)])
    text = report(tmp_path / "out", short)[2].text("evaluation")
    assert "The paper has no numbers for niah_single, 512." in text
    assert "4,096, 8,192, 16,384" in text
    assert "98.8" not in text


def test_the_average_of_longbench(tmp_path):
    folder = evaluation_run(tmp_path / "a", places=[(t, None) for t in paper.LONGBENCH], rows=4)
    average = json.loads((folder / "scores.json").read_text())["averages"][0]["mean"]
    text = report(tmp_path / "out", folder)[2].text("evaluation")
    assert f"average of 12 LongBench tasks {average:.1f}" in text
    assert f"own run {average:.1f}" in text
    assert "DeltaNet-1.3B paper: ReFINE mid, ReFINE TTT 17.9" in text


def test_the_difference_of_two_runs(whole, folders):
    text = whole[3].text("comparison")
    assert "refine minus sft" in text
    assert "24 rows were scored in refine only" in text
    scores = [
        {row["id"]: row["score"] for row in map(json.loads, path.read_text().splitlines())}
        for path in (folder / "answers.jsonl" for folder in folders[2:4])
    ]
    common = [key for key in scores[0] if "niah" in key]
    assert len(common) == 12
    later, earlier = ({k: s[k] for k in common} for s in (scores[1], scores[0]))
    found = paired_difference(later, earlier).percent()
    numbers = [f"{found.difference:+.1f}", f"{found.low:+.1f}", f"{found.high:+.1f}"]
    line = next(line for line in text.split("\n") if line.strip().startswith("niah_single"))
    values = line.replace("−", "-").split()
    assert values[2:5] == ["12", f"{found.mean_a:.1f}", f"{found.mean_b:.1f}"]
    assert [values[5], values[6], values[8]] == numbers
    assert "all rows 36" in text
    assert "significant" not in text


def test_other_questions_under_the_same_id(tmp_path):
    one, other = evaluation_run(tmp_path / "a"), evaluation_run(tmp_path / "b")
    rows = [json.loads(line) for line in (other / "answers.jsonl").read_text().splitlines()]
    rows[0]["references"] = ["another"]
    rows[1]["cut_tokens"] = 3
    write_lines(other / "answers.jsonl", rows)
    text = report(tmp_path / "out", one, other)[2].text("comparison")
    assert "1 rows have the same id in both runs but another task" in text
    assert "Of 1 rows the two runs read prompts that were cut differently" in text


def test_runs_without_common_rows(tmp_path):
    one = evaluation_run(tmp_path / "a", places=[("niah_single", 4096)])
    other = evaluation_run(tmp_path / "b", places=[("ruler_squadqa", 4096)])
    assert "no scored row in common" in report(tmp_path / "out", one, other)[2].text("comparison")


def test_a_sweep_side_by_side(whole):
    out, _, _, page, _ = whole
    text = page.text("ablations")
    assert "5 2 5.0500 ± 0.0707 5.05% ± 0.07%" in text
    assert "tiny_mid (recipe as it is) 2 2.0500 ± 0.0707" in text
    assert "edit_distance 1 2.0000 2.00%" in text
    assert "reward/edit_distance, seed 1: failed" in text
    assert "SIGKILL" in text
    assert "embedding similarity 16.9 17.0" in text
    assert (out / "figures" / "ablation_4_rollout_length_val_ntp_loss.png").is_file()


def test_an_older_report_is_replaced_and_other_files_stay(tmp_path):
    out = tmp_path / "out"
    report(out, training_run(tmp_path / "a"))
    (out / "figures" / "mine.png").write_bytes(b"")
    assert (out / "figures" / "curve_train_ntp_loss.png").is_file()
    report(out, evaluation_run(tmp_path / "b"))
    assert {p.name for p in (out / "figures").iterdir()} == {"mine.png", "scores.png"}


def test_every_scalar_is_known():
    names = [metric.name.replace("<name>", "mine") for metric in metrics()]
    assert [name for name in names if metric_of(name) is None] == []
    assert len(names) >= 40
    assert metric_of("mine/own") is None
    assert metric_of("reward/total/mean").title != metric_of("reward/mine/mean").title
    assert format_value("policy/approx_kl", -1e-9) == "0.0000"


def test_the_papers_averages_are_those_of_its_tasks():
    rows = [scores for stages in paper.LONG_BENCH.scores.values() for scores in stages.values()]
    assert len(rows) == 10
    for scores in rows:
        tasks = [scores[task, None] for task in paper.LONGBENCH]
        assert np.mean(tasks) == pytest.approx(scores[paper.AVERAGE, None], abs=0.1)
    for table, stages in ((paper.NIAH, 3), (paper.QA, 8)):
        assert [len(found) for found in table.scores.values()] == [stages] * 2
        assert list(table.scores) == ["LaCT-760M", "DeltaNet-1.3B"]


def test_settings_are_named_after_their_classes():
    def config(*callbacks, n=1):
        return {"trainer": {"callbacks": list(callbacks)}, "n": n}

    recorder = {"class_path": "a.Recorder", "init_args": {"every": 5}}
    other = {"class_path": "a.Recorder", "init_args": {"every": 6}}
    first = {"class_path": "a.First"}
    found = dict(differences([config(recorder), config(first, other, n=2)]))
    assert found == {
        "trainer.callbacks[Recorder].every": ["5", "6"],
        "trainer.callbacks[First]": ["–", "a.First"],
        "n": ["1", "2"],
    }
    assert differences([config(recorder), config(recorder)]) == []


def test_settings_of_a_class_that_not_all_have_follow_from_the_class():
    def config(data, **settings):
        return {"data": {"class_path": data, "init_args": settings}, "seed": 1}

    one, two = config("a.Text", length=8, seed=0, cache=None), config("a.Rows", paths="x", seed=2)
    rows = differences([one, two])
    assert "data.cache" not in dict(rows)  # absent, or null
    assert of_one_class(rows) == {"data.length", "data.paths"}
    missing = differences([{"parts": [{"name": "a", "n": 1}]}, {"parts": [{"name": "b", "n": 1}]}])
    assert missing
    assert not of_one_class(missing)


def test_the_running_mean_skips_what_is_no_number():
    values = np.array([0.0, 3.0, np.nan, 5.0, 7.0])
    assert running_mean(values, 3).tolist() == [1.5, 1.5, 4.0, 6.0, 6.0]


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--enable-logging=stderr --window-size=1280,1600"
)
# What the page looks like from inside; a page of 375 px is measured in a frame.
MEASURE = """<script>addEventListener('load', () => {
  const narrow = document.createElement('iframe');
  narrow.width = 375; narrow.srcdoc = '<!DOCTYPE html>' + document.documentElement.outerHTML
    .replace(/<script>[^]*?<\\/script>/, '');
  const sizes = page => ({
    page: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    figures: [...page.images].map(i => [i.naturalWidth, i.clientWidth, i.clientHeight])});
  const wide = sizes(document);
  narrow.onload = () => setTimeout(() => document.documentElement.setAttribute('data-sizes',
    JSON.stringify({wide, narrow: sizes(narrow.contentDocument)})), 300);
  document.body.append(narrow);
});</script></body>"""


def browse(profile, page, *flags):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"there is no browser: none of {', '.join(BROWSERS)} is installed")
    command = [browser, *FLAGS.split(), f"--user-data-dir={profile}", *flags, page.as_uri()]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return outcome


def complaints(outcome):
    return [line for line in outcome.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.browser
def test_a_browser_shows_it(whole, tmp_path):
    out, _, html, page, _ = whole
    picture = tmp_path / "page.png"
    outcome = browse(tmp_path / "1", out / "report.html", f"--screenshot={picture}")
    assert complaints(outcome) == []
    content = picture.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (1280, 1600)
    assert len(content) > 50_000  # a blank page has a tenth of it

    measured = tmp_path / "measured.html"
    own_policy = re.compile(r'<meta http-equiv="Content-Security-Policy".*?>')
    measured.write_text(own_policy.sub("", html).replace("</body>", MEASURE))
    outcome = browse(
        tmp_path / "2", measured, "--dump-dom", "--virtual-time-budget=10000", "--timeout=60000"
    )
    found = re.search(r'data-sizes="(.*?)"', outcome.stdout)
    assert found, outcome.stderr
    sizes = json.loads(found[1].replace("&quot;", '"'))
    for view, width in (("wide", 1280), ("narrow", 375)):
        assert sizes[view]["page"] == 0, f"wider than {width} pixels"
        assert len(sizes[view]["figures"]) == page.tags.count("img")
        open_ones = [size for size in sizes[view]["figures"] if size[1]]
        assert all(natural > 300 for natural, _, _ in sizes[view]["figures"])
        assert all(height > 80 for _, _, height in open_ones)
        assert len(open_ones) >= 15


@pytest.mark.browser
def test_a_broken_page_is_noticed(tmp_path):
    page = tmp_path / "broken.html"
    policy = "default-src 'none'; img-src data:"
    page.write_text(
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<img src="data:image/png;base64,AAAA"><script>x</script><div style="width:1400px">a</div>'
    )
    assert complaints(browse(tmp_path / "1", page, "--dump-dom"))
