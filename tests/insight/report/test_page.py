"""The page of a run: all it must hold, nothing it must not, and a real browser agrees."""

import functools
import gc
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.cli import options
from mlx_dpo.cli.train import train
from mlx_dpo.errors import UsageError
from mlx_dpo.insight.charts import MOST_COLOURS
from mlx_dpo.insight.report.page import command, write_report
from mlx_dpo.manifest import DIGESTS
from mlx_dpo.preferences import reader
from mlx_dpo.preferences.json_text import RawRow, raw_rows
from mlx_dpo.records import Preference
from mlx_dpo.runs.config import RunConfig, resolve
from mlx_dpo.runs.defaults import decided
from mlx_dpo.runs.folder import RESULT, SEALED, RunFolder
from tests.cli.test_cli import exit_code
from tests.insight.report.conftest import HOSTILE
from tests.runs.conftest import ORACLE


def test_the_page_holds_what_happened_and_is_self_contained(run: Path) -> None:
    page = write_report([run]).read_text()
    for part in ("Loss", "log 2: untrained", "Learning rate", "Gradient norm", "Calibration"):
        assert part in page
    for part in ("2 pairs to train on, 2 held out", "30.0 s of training (8.0 pairs/s)", "1.00 GiB"):
        assert part in page
    cells = re.findall(r"<tr>(<td>.*)</tr>", page)
    assert "<td>forward and backward</td><td>18.00</td><td>0.300</td><td>60 %</td>" in cells
    assert "<td>the rest</td><td>3.00</td><td>0.050</td><td>10 %</td>" in cells
    assert "first reached at step 8. Padding: 1.25 tokens" in page
    assert "halfway" in page
    assert "right in" in page  # the audit's word on length
    assert "<td>0.50 <small>0.09\u20130.91</small></td>" in page  # accuracies of all, by hand
    assert "2026-" in page
    assert len(page.encode()) < 1_000_000
    assert not re.search(r"<(img|link|iframe)|url\(|@import", page)


def test_one_script_may_run_and_it_is_ours(run: Path) -> None:
    page = write_report([run]).read_text()
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall('Content-Security-Policy" content="([^"]*)"', page)
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in policy
    assert page.count("<script") == 1
    assert not re.search("fetch|XMLHttp|import|eval|innerHTML|http:(?!//www.w3.org)", script)


@pytest.mark.parametrize(
    ("outcome", "shown"),
    [("better", "good ✓"), ("worse", "bad ✕"), ("collapsed", "bad ✕"), ("too-few", "care !")],
)
def test_the_verdict_has_a_colour_and_a_sign(run: Path, outcome: str, shown: str) -> None:
    result = json.loads((run / "result.json").read_text())
    result["verdict"] = {"outcome": outcome, "sentence": "So it is.", "advice": f"Do {HOSTILE}."}
    (run / "result.json").write_text(json.dumps(result))
    page = write_report([run]).read_text()
    css, sign = shown.split()
    assert re.search(f'class="verdict {css}"><span class="sign"[^>]*>{sign}</span>', page)
    assert '<p class="headline">So it is.</p>' in page


def test_what_the_answers_differ_in_is_marked_and_unchanged_ones_say_so(run: Path) -> None:
    answers = [
        {"prompt": "p", "kind": "k", "sft": sft, "dpo": dpo, "mark": mark}
        for sft, dpo, mark in (
            ("It is <b>15</b>.", "It is 11.", "better"),
            ("The same.", "The same.", "same"),
            ("", "Something.", "worse"),
        )
    ]
    (run / "result.json").write_text(json.dumps({"out": "o", "answers": answers}))
    page = write_report([run]).read_text()
    assert "It is <del>&lt;b&gt;15&lt;/b&gt;.</del>" in page
    assert "It is <ins>11.</ins>" in page
    assert "▲ better" in page
    assert '</span>The same. <span class="soft">= unchanged' in page
    assert page.count("The same.") == 1
    assert '<span class="who">SFT</span>(nothing)</p>' in page
    assert "<b>2 of 3</b> answers changed" in page


def test_a_run_that_kept_its_best_step_says_so(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    for kept in ({}, {"step": 50, "by": "last"}):
        (run / "result.json").write_text(json.dumps({**result, "kept": kept}))
        assert "exported model" not in write_report([run]).read_text()
    (run / "result.json").write_text(json.dumps({**result, "kept": {"step": 30, "by": "loss"}}))
    page = write_report([run]).read_text()
    assert "The exported model is that of step 30, which has the best held-out loss" in page


def test_pairs_whose_chosen_answer_fell_are_listed_with_what_rose_instead(run: Path) -> None:
    page = write_report([run]).read_text()
    assert "0 of 2 held-out pairs. On average log p(chosen) changed by +0.50 nats" in page
    assert page.count("chosen -3.50, rejected -4.50") == 2
    assert page.count("0.5 → 0.25") == 3
    assert "Cures" not in page
    scores = {"policy": [[-9.0] * 12] * 2, "reference": [[-8.0, -7.0] * 6] * 2}
    (run / "held_out.json").write_text(json.dumps({"kinds": ["x"] * 12, **scores}))
    (run / "result.json").write_text('{"out": "o"}')  # of an older version
    page = write_report([run]).read_text()
    assert "12 of 12 held-out pairs. On average log p(chosen) changed by -1.50 nats" in page
    assert "Cures, in this order: lower " in page


def test_what_the_reference_was_before_is_said(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "tuned_before": f"so {HOSTILE}"}))
    page = write_report([run]).read_text()
    assert (
        "<dt>history</dt><dd>this model seems to have had preference training: so &lt;script&gt;"
        in page
    )


def test_lengths_are_judged_in_tokens_as_the_run_judged_them(run: Path) -> None:
    rows = [{"prompt": f"p {n}", "chosen": "a b c d", "rejected": "a"} for n in range(20)]
    (run.parent / "pairs.json").write_text(json.dumps(rows))
    (run / "lengths.json").write_text(json.dumps([[3, 3], [5, 4], [4, 5]]))
    page = write_report([run]).read_text()
    assert "Length of answers, stop" not in page
    assert "mean +0.0 tokens" in page
    assert "Length of chosen minus rejected, pairs of --data" in page
    assert "pairs, by gap in tokens" in page


def test_a_run_whose_data_file_has_no_usable_pair_any_more_has_a_page(run: Path) -> None:
    config = RunConfig(model="m", data="pairs.json", drop_bad=True)
    (run / "config.toml").write_text(config.to_toml())
    Path("pairs.json").write_text('[{"prompt": "p"}]')
    page = write_report([run]).read_text()
    assert "not checked: pairs.json: no pair is left (2 missing-key)" in page


def test_a_rule_that_wins_by_length_is_told_at_the_top_as_a_stop(run: Path) -> None:
    rows = [{"prompt": f"p {n}", "chosen": "a b c d", "rejected": "a"} for n in range(20)]
    (run.parent / "pairs.json").write_text(json.dumps(rows))
    page = write_report([run]).read_text()
    assert '<p class="note bad"><span class="sign">✕ Length of answers, stop:</span>' in page
    assert "pairs, by gap in words" in page
    assert '<dt>lengths</dt><dd><span class="sign bad">✕ stop</span>' in page


def test_the_data_of_several_runs_is_read_once_and_no_row_of_it_is_held(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows_in_memory() -> int:
        return sum(type(thing) is Preference for thing in gc.get_objects())

    before, alive = rows_in_memory(), []
    files = []

    def watched(path: Path) -> Iterator[RawRow]:
        files.append(path)
        for number, row in enumerate(raw_rows(path), 1):
            if number % 5 == 0:  # all objects are looked through, which takes its time
                alive.append(rows_in_memory() - before)
            yield row

    monkeypatch.setattr(reader, "raw_rows", watched)
    others = [run.parent / f"run-{n}" for n in (2, 3)]
    for other in others:
        shutil.copytree(run, other)
    page = write_report([run, *others], run / "all.html").read_text()
    assert page.count("right in") == 3
    assert [str(file) for file in files] == ["pairs.json"]
    assert len(alive) == 4
    assert max(alive) <= 1


def test_files_that_were_changed_since_the_run_are_named(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told() -> str:
        assert exit_code("report", str(run)) == 0
        return capsys.readouterr().err

    (run / "lengths.json").write_text("[[11, 5, 7]]")
    assert not told()  # a run of an earlier version, which knew no digests
    RunFolder(run).finish({"out": "o 1", "answers": []})
    assert not told()
    for name in SEALED:
        text = (run / name).read_text()
        (run / name).write_text(text.replace("1", "2", 1).replace(HOSTILE, "other"))
        assert f"warning: {run / name}: changed since the run" in told(), name
        assert f"{run.name}/{name}: changed" in (run / "report.html").read_text()
        (run / name).write_text(text)
    (run / DIGESTS).write_text("{")
    assert f"{DIGESTS}: changed since the run" in told()
    RunFolder(run).finish({"out": "o 1", "answers": []})
    (run / "samples.jsonl").unlink()
    assert "samples.jsonl: gone since the run" in told()
    (run / RESULT).unlink()
    assert "has not finished (no result.json)" in told()


def test_a_run_that_is_not_finished_has_a_page_that_says_so(run: Path) -> None:
    for name in ("result.json", "held_out.json"):
        (run / name).unlink()
    page = write_report([run]).read_text()
    assert "Not finished: 60 of 60 steps." in page
    plain = page.replace('<span class="option">', "").replace("</span>", "")
    assert f"mlx_dpo train --resume --run-dir {run} goes on." in plain
    assert "<h2>Answers after step 30</h2>" in page
    config = RunConfig(model="m", data="pairs.json", steps=1000)
    (run / "config.toml").write_text(config.to_toml())
    page = write_report([run]).read_text()
    assert "Not finished: 60 of 1000 steps." in page
    (curve,) = re.findall("<svg[^<]*<[^<]*>Learning rate<.*?</svg>", page, re.DOTALL)
    assert ">1000</text>" in curve  # there is room for the steps to come
    assert "halfway" in page
    assert "no pair was held out" not in page  # it is only not measured yet
    (run / "split.json").write_text('{"train": ["1", "2"], "held_out": []}')
    assert "no pair was held out" in write_report([run]).read_text()


def test_runs_are_drawn_together_with_one_colour_each_and_one_key(run: Path) -> None:
    folders = [run.parent / f"run-{n}" for n in range(1, MOST_COLOURS + 2)]
    for folder in folders[1:]:
        shutil.copytree(run, folder)
    page = write_report(folders[:MOST_COLOURS], run / "five.html").read_text()
    key, pictures = page[page.index('class="key"') : page.index("<h1>run-1")].split("</p>", 1)
    assert re.findall(r'line (s\d)"/></svg> (run-\d)', key) == [
        (f"s{n}", f"run-{n}") for n in range(1, MOST_COLOURS + 1)
    ]
    pictures = re.sub("<title>.*?</title>", "", pictures, flags=re.DOTALL)
    svgs = re.findall("<svg.*?</svg>", pictures, re.DOTALL)
    assert len(svgs) == 5  # one evaluation a run: no curve of it
    assert all(f'"line s{n}"' in svg for svg in svgs for n in range(1, MOST_COLOURS + 1))
    assert "run-2" not in pictures
    more = write_report(folders, run / "six.html").read_text()
    assert 'class="key"' not in more  # there would be two of one colour
    assert more.count('<a href="#run-') == MOST_COLOURS + 1


def test_runs_of_different_beta_are_drawn_in_nats_which_can_be_compared(run: Path) -> None:
    other = run.parent / "run-2"
    shutil.copytree(run, other)
    config = RunConfig(model=HOSTILE, data="pairs.json", beta=2.0, steps=60)
    (other / "config.toml").write_text(config.to_toml())
    lines = (other / "metrics.jsonl").read_text().replace('_reward": 0.5', '_reward": 5.0')
    (other / "metrics.jsonl").write_text(lines)
    page = write_report([run, other], run / "both.html").read_text()
    together = page[page.index('class="key"') : page.index("<h1>beta 0.2</h1>")]
    (chosen,) = re.findall("<svg[^<]*<[^<]*Chosen log-ratio.*?</svg>", together, re.DOTALL)
    paths = re.findall(r'<path d="([^"]*)" class="line s\d"', chosen)
    assert len(paths) == 2
    assert paths[0] == paths[1]  # 0.5 / 0.2 = 5 / 2
    assert "reward" not in together.lower()


def test_held_out_accuracy_is_drawn_together_once_it_is_a_curve(run: Path) -> None:
    other = run.parent / "run-2"
    shutil.copytree(run, other)
    page = write_report([run, other], run / "both.html").read_text()
    assert "Reward accuracy, held out" not in page
    again = {"step": 29, "held_out": dict.fromkeys(("loss", "reward_margin", "accuracy"), 0.6)}
    lines = (other / "metrics.jsonl").read_text()
    (other / "metrics.jsonl").write_text(json.dumps(again) + "\n" + lines)
    page = write_report([run, other], run / "both.html").read_text()
    (chart,) = re.findall("<svg[^<]*<[^<]*Reward accuracy, held out.*?</svg>", page, re.DOTALL)
    ((left, right),) = re.findall(r'd="M([\d.]+) [\d.]+L([\d.]+) [^"]*" class="line s2"', chart)
    # Over all 60 steps, as the curves beside it.
    (start, end) = re.findall(r'd="M([\d.]+) [\d.]+L([\d.]+) [\d.]+" class="grid"', chart)[0]
    assert right == end
    share = (float(left) - float(start)) / (float(end) - float(start))
    assert share == pytest.approx(29 / 59, abs=0.001)


@pytest.mark.parametrize("name", ["environment.json", "split.json"])
def test_a_run_without_what_is_written_before_the_first_step_has_none(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(UsageError, match=f"ended before it began to train \\(no {name}\\)"):
        write_report([run])


def test_runs_stand_on_one_page_and_a_folder_without_a_run_is_refused(run: Path) -> None:
    other = run.parent / "run-2"
    shutil.copytree(run, other)
    page = write_report([run, other], run / "both.html").read_text()
    assert re.findall("<h1>(.*)</h1>", page) == ["2 runs together", "run-1", "run-2"]
    assert page.index('href="#run-2"') < page.index('id="run-2"')
    with pytest.raises(UsageError, match="no run there"):
        write_report([run.parent])
    assert exit_code("report", str(run.parent)) == 2
    assert exit_code("report", str(run)) == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0.3, "plain": True, "drop_bad": True, "steps": 7, "grad_clip": 0.0},
        {"method": "lora", "lora_modules": "attention", "lora_layers": 1, "adapter_format": "both"},
        {"adapter": "earlier", "adapter_reference": "base", "reference": "adapters-off"},
        {"eval_data": "-valid pairs.jsonl", "memory_budget": "4GB", "date": "2026-01-31"},
        {"run_dir": "x", "out": "y", "overwrite": True, "warmup_steps": 3},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_the_command_is_understood_and_means_the_same_settings(
    run: Path, settings: dict[str, Any]
) -> None:
    Path("earlier").mkdir()
    config = decided(RunConfig(model=str(ORACLE), data="pairs.json", **settings))
    words = shlex.split(command(config))
    typed = train.make_context("train", words[2:]).params
    given = options.typed({field.name: typed[field.name] for field in fields(RunConfig)})
    free: dict[str, Any] = {"run_dir": None, "out": None, "overwrite": False}
    assert decided(resolve(None, given)) == replace(config, **free)


def test_the_command_names_what_is_not_the_default() -> None:
    config = RunConfig(model="my model", data="d", beta=0.3, plain=True, run_dir="x")
    assert command(config) == "mlx_dpo train --model 'my model' --data d --beta 0.3 --plain"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")
def test_a_real_browser_shows_it_without_errors_or_requests(run: Path) -> None:
    page = write_report([run])
    clean = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    found = subprocess.run(
        [
            *(str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--enable-logging=stderr", "--v=0", "--window-size=1280,900"),
            *(f"--user-data-dir={run / 'profile'}", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env=clean,
        check=True,
    )
    assert "<title>DPO report: run-1</title>" in found.stdout
    assert found.stdout.count("<svg") >= 9
    assert 'data-told="optimizer step 1' in found.stdout  # the page's own script ran
    # A blocked request, a script that ran and a page error all end on the console.
    assert "CONSOLE" not in found.stderr


def test_a_phone_scrolls_no_page_sideways_and_a_touch_shows_the_values(
    run: Path, browser: Any
) -> None:
    from selenium.webdriver import ActionChains

    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    browser.get(write_report([run]).as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    hidden = (
        "return [...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth)"
    )
    assert set(browser.execute_script(hidden)) == {0}, "no table is cut"
    find = functools.partial(browser.find_element, "css selector")
    tip, loss = find(".tip"), find("svg.plot")
    assert not tip.is_displayed()
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", loss)
    ActionChains(browser).move_to_element(loss).perform()
    assert re.fullmatch(r"optimizer step \d+\ntraining 0.5 \(mean 0.5\)", tip.text)
    ActionChains(browser).move_to_element(find("h1")).perform()
    assert not tip.is_displayed()


def test_the_page_says_how_a_run_trained_and_an_old_run_trained_all(run: Path) -> None:
    config = RunConfig(model="m", data="pairs.json", method="lora", lora_modules="attention")
    page = write_report([run]).read_text()
    assert "<dt>method</dt><dd>all weights</dd>" in page
    (run / "config.toml").write_text(replace(config, lora_rank=8, lora_scale=2.0).to_toml())
    page = write_report([run]).read_text()
    assert "LoRA on the layers of attention, rank 8, scale 2</dd>" in page  # not finished yet
    adapter = {"ranks": [4, 8], "scales": [20.0], "modules": 3, "parameters": 33e6, "bytes": 2**27}
    (run / "result.json").write_text(json.dumps({"out": "o", "answers": [], "adapter": adapter}))
    (run / "config.toml").write_text(replace(config, adapter="earlier", dtype="float16").to_toml())
    page = write_report([run]).read_text()
    assert (
        "LoRA on the layers of earlier, rank 4, 8, scale 20: 33.0 M parameters, 128.0 MiB, "
        "weights in float16" in page
    )


def test_the_command_for_the_same_adapter_names_all_that_makes_it() -> None:
    config = RunConfig(
        *("m", "pairs.json"),
        method="lora",
        learning_rate=1e-4,
        lora_rank=8,
        lora_scale=4.0,
        lora_modules="q_proj,v_proj",
        lora_layers=2,
        adapter_format="both",
    )
    words = command(config)
    for option in ("--method lora", "--learning-rate 0.0001", "--lora-rank 8", "--lora-scale 4.0"):
        assert option in words
    assert "--lora-modules q_proj,v_proj" in words
    assert "--lora-layers 2" in words
    assert "--adapter-format both" in words
    assert "--adapter " not in words


@pytest.mark.parametrize("value", ["1", '"text"', "null", "[1]", '{"x": 1}', "true", "1e999"])
@pytest.mark.parametrize(
    ("file", "key"),
    [
        *(("metrics.jsonl", key) for key in ("step", "loss", "lr", "held_out")),
        *(("timings.jsonl", key) for key in ("seconds", "peak_bytes", "ended")),
        *(("samples.jsonl", key) for key in ("step", "answers")),
        *(
            ("result.json", key)
            for key in ("answers", "adapter", "verdict", "kept", "displacement")
        ),
        *(("held_out.json", key) for key in ("kinds", "policy", "reference")),
        *(("environment.json", "mlx"), ("split.json", "train")),
    ],
)
def test_wrong_types_in_the_files_of_a_run_are_shown_or_refused_in_one_line(
    run: Path, file: str, key: str, value: str
) -> None:
    first, *rest = (run / file).read_text().splitlines()
    changed = json.dumps(json.loads(first) | {key: json.loads(value)})
    (run / file).write_text("\n".join([changed, *rest]))
    assert exit_code("report", str(run)) in (0, 2)


def test_no_control_character_reaches_the_page(run: Path) -> None:
    bad = "a\x1b[31mb\x00c\x9bd\u202ee\r\nf\tg"
    answers = [{"prompt": bad, "kind": bad, "sft": bad, "dpo": bad}]
    (run / "result.json").write_text(json.dumps({"out": bad, "answers": answers}))
    page = write_report([run]).read_bytes().decode()
    assert "a\ufffd[31mb" in page
    assert not set(page) & set("\x00\x1b\x9b\u202e\r")
