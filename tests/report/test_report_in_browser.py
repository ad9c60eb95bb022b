"""The page in a real browser: every view, every control, and texts that would like to be code."""

import csv
import io
from importlib.resources import files
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from browser import open_browser, requests, wait_for
from evaluated import evaluate
from measured_runs import write_run

from ntkprobe import Trajectory
from ntkprobe.report import make_report

pytestmark = pytest.mark.slow

HOSTILE = {
    "normal": "x" * 9_960 + ' "><svg onload=alert(1)> ' + "y" * 15,
    "seemingly_toxic": "<img src=x onerror=\"window.ran = true; alert('img')\">",
    "toxic": "</script><script>window.ran = true; alert('script')</script>\u202etxet\u202c\x07",
}
FORMULA = '=HYPERLINK("http://nowhere.test")'


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def driver(downloads):
    driver = open_browser(downloads)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs and two evaluations, with hostile texts, names, tokens and answers."""
    place = tmp_path_factory.mktemp("page")
    write_run(place / "stl-ntk", texts=HOSTILE)
    write_run(place / "dcr-stl-ntk", texts=HOSTILE, cross=0.1, final=0.0)
    write_tokens(place / "stl-ntk")
    for name, letters in (("stl", "rcr"), ("dcr", "ccr")):
        about = {"kinds": "ssx", "xstest_prefixes": letters, "other": "rcc", "answers": ANSWERS}
        evaluate(place / "evals" / name, {"own": about}, label=f"{name} <b>")
    path = place / "evals/stl/prompts/own.parquet"
    texts = [HOSTILE["seemingly_toxic"], FORMULA, HOSTILE["toxic"]]
    pd.read_parquet(path).assign(prompt=texts).to_parquet(path)
    page = make_report([place, place / "evals"]).save(place / "report.html")
    return SimpleNamespace(page=page, run=Trajectory(place / "stl-ntk"), place=place)


ANSWERS = ["<script>window.ran = true</script>", "fine", "javascript:alert(1)"]


def write_tokens(folder):
    (folder / "tokens").mkdir()
    rows = pd.DataFrame({"step": 40, "prompt": [3, 3, 15], "rank": [0, 1, 0], "token": [5, 6, 7]})
    rows.assign(text=["<b>", "</script>", "I"]).to_parquet(folder / "tokens/step-00000040.parquet")


@pytest.fixture
def show(driver, made):
    """Open the page at a fragment; in the end nothing was complained of, asked for or run."""

    def opened(fragment="", page=made.page):
        driver.get("about:blank")
        driver.get(f"file://{page}#{fragment}")
        wait_for(lambda: driver.execute_script("return document.body.dataset.ready === 'yes'"))
        return driver

    driver.get("about:blank")
    requests(driver), driver.get_log("browser")
    yield opened
    assert driver.execute_script("return window.ran === undefined")
    complaints = [line for line in driver.get_log("browser") if "favicon" not in line["message"]]
    assert not complaints
    assert not [
        url for url in requests(driver) if not url.startswith(("file:///", "about:", "blob:"))
    ]


def find(driver, selector):
    return driver.find_elements("css selector", selector)


def text_of(driver, selector):
    return driver.execute_script("return document.querySelector(arguments[0]).innerText", selector)


def click(driver, selector):
    driver.execute_script(
        "const e = document.querySelector(arguments[0]);"
        "e.scrollIntoView({block: 'center'}); e.click()",
        selector,
    )


def drawn_pictures(driver, view):
    """Return how many charts of a view have ink, of how many."""
    charts = find(driver, f"#view-{view} .chart")
    seen = [chart for chart in charts if chart.is_displayed()]
    marks = [chart.find_elements("css selector", "svg path, canvas") for chart in seen]
    return sum(map(bool, marks)), len(seen)


@pytest.mark.parametrize(
    ("view", "pictures"),
    [("overview", 3), ("training", 10), ("prompt", 3), ("layers", 4), ("benchmarks", 1)],
)
def test_every_view_is_drawn_with_a_table_and_csv_behind_each_picture(view, pictures, show):
    driver = show(f"view={view}&prompt=15")
    assert drawn_pictures(driver, view) == (pictures, pictures)
    figures = [f for f in find(driver, f"#view-{view} figure") if f.is_displayed()]
    for figure in figures:
        assert figure.find_elements("css selector", "button.csv, details")
        chart = figure.find_element("css selector", ".chart")
        assert chart.get_attribute("role") in ("img", "application")
        assert len(chart.get_attribute("aria-label")) > 10


def test_a_click_on_a_tab_or_an_arrow_key_shows_its_view(show):
    driver = show()
    click(driver, "#tab-layers")
    assert find(driver, "#view-layers")[0].is_displayed()
    assert not find(driver, "#view-overview")[0].is_displayed()
    find(driver, "#tab-layers")[0].send_keys("\ue014")  # arrow right
    assert find(driver, "#view-benchmarks")[0].is_displayed()
    assert "view=benchmarks" in driver.current_url


def test_the_step_control_changes_every_number_and_the_link(show, made):
    driver = show("view=training")
    means = made.run.group_means(resamples=0).set_index(["step", "observed_group", "updated_group"])
    rates = made.run.refusal_means().query("reduction == 'literal'").set_index(["step", "group"])
    assert text_of(driver, "#step-now") == "40"
    click(driver, "#step-before")
    assert text_of(driver, "#step-now") == "20" and "step=20" in driver.current_url
    label = find(driver, "[data-name='rates-stl'] .chart")[0].get_attribute("aria-label")
    assert f"toxic {100 * rates.loc[20, 'toxic'].iloc[3]:.0f} %" in label
    label = find(driver, "[data-name='means-stl'] .chart")[0].get_attribute("aria-label")
    value = means.loc[(20, "seemingly_toxic", "toxic"), "similarity"]
    assert f"s-toxic from toxic {value:.2f}" in label
    click(driver, "#tab-overview")
    assert "step 20" in text_of(driver, "#glance thead")


def test_a_click_on_a_pair_shows_both_texts_and_its_number(show, made):
    driver = show("view=training")
    from selenium.webdriver import ActionChains

    canvas = find(driver, ".map canvas")[0]
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    size = canvas.size["width"] - 34
    middle = (canvas.size["width"] / 2, canvas.size["height"] / 2)
    places = zip((5.5, 0.5), middle, strict=True)
    to = [round(30 + size * place / 15 - half) for place, half in places]
    ActionChains(driver).move_to_element_with_offset(canvas, *to).perform()
    tip = wait_for(lambda: text_of(driver, "#tip"))
    assert "STL 0.320 · DCR → STL 0.100" in tip
    ActionChains(driver).click().perform()
    wait_for(lambda: "pair=" in driver.current_url)
    observed, updated = driver.current_url.split("pair=")[1].split("&")[0].split("%2C")
    groups = made.run.prompts.set_index("prompt")["group"]
    assert (groups[int(observed)], groups[int(updated)]) == ("seemingly_toxic", "toxic")
    assert find(driver, "#pair")[0].is_displayed()
    assert find(driver, "[data-name=pair-by-layer] svg")


def test_the_map_can_be_read_and_zoomed_by_keys(show):
    driver = show("view=training")
    place = find(driver, ".map")[0]
    place.send_keys("\ue015")  # arrow down
    assert "STL 0.400" in driver.find_element("id", "said").get_attribute("textContent")
    place.send_keys("+")
    assert "zoom=" in driver.current_url
    place.send_keys("0")
    assert "zoom=" not in driver.current_url


def test_a_prompt_is_found_by_its_words(show):
    driver = show("view=prompt&prompt=0")
    field = find(driver, "#search")[0]
    field.send_keys("seemingly prompt 7")
    assert [item.text for item in find(driver, "#matches li")] == [
        "seemingly toxic seemingly_toxic prompt 7, $5"
    ]
    field.send_keys("\ue007")  # enter
    assert "prompt=19" in driver.current_url
    assert "seemingly_toxic prompt 7, $5" in text_of(driver, ".prompt-head")


def test_a_prompt_shows_neighbours_pushes_and_tokens(show):
    driver = show("view=prompt&prompt=15")
    nearest = text_of(driver, "#view-prompt table")
    assert nearest.count("seemingly_toxic prompt") == 4 and "0.320" in nearest
    assert len(find(driver, "#view-prompt .strip rect")) >= 12 * 2
    shown = text_of(driver, "#view-prompt")
    assert "toxic lesson 3, $5" in shown and "I cannot." in shown
    assert [item.text for item in find(driver, ".tokens li")] == ["I"]


@pytest.mark.parametrize(
    ("fragment", "selector", "wanted"),
    [
        ("view=prompt&prompt=30&step=5", ".prompt-head", "prompt 30"),
        ("view=training&pair=12,24&step=5", "#pair", "seemingly_toxic prompt 0"),
        ("view=layers&between=normal%3Ctoxic&step=2", "#view-layers", "step 2"),
        ("view=benchmarks&method=stl+%3Cb%3E", ".refused", "1 of 2"),
        ("view=nothing&step=-1&prompt=999999&pair=1&zoom=a", "#view-overview", "step 40"),
    ],
)
def test_a_link_restores_what_was_shown(fragment, selector, wanted, show):
    driver = show(fragment)
    assert wanted in text_of(driver, selector)


def test_going_back_shows_what_was_there(show):
    driver = show("view=overview")
    click(driver, "#tab-layers")
    driver.back()
    wait_for(lambda: find(driver, "#view-overview")[0].is_displayed())


def saved(driver, downloads, selector):
    before = set(downloads.iterdir())
    driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)}
    )
    click(driver, selector)

    def done():
        return [path for path in set(downloads.iterdir()) - before if path.suffix == ".csv"]

    return wait_for(done)[0].read_bytes().decode()


def test_a_layers_bar_is_as_long_as_its_number_on_either_side(show):
    folder = files("ntkprobe.report") / "scripts"
    scripts = [(folder / f"{name}.js").read_text("utf-8") for name in ("text", "pair", "prompt")]
    drawn = "strip(['1', '2', '3'], [0.2, -0.1, 0.1], [-0.1, 0.2]).querySelectorAll('rect')"
    height = "(one) => Number(one.getAttribute('height'))"
    script = "\n".join([*scripts, f"return [...{drawn}].map({height})"])
    heights = np.array(show().execute_script(script))
    assert heights / heights[0] == pytest.approx([1, 0.5, 0.5])
    assert heights[:2].sum() < 30  # inside the picture


def test_saved_numbers_are_the_trajectorys(show, downloads, made):
    driver = show("view=training&step=10")
    text = saved(driver, downloads, "button[aria-label='Save pairs-STL as CSV'], .maps button.csv")
    table = pd.read_csv(io.StringIO(text))
    kernel = made.run.kernel().query("step == 10").set_index(["observed", "updated"])
    ours = table.set_index(["observed", "updated"])["similarity"]
    assert len(ours) == 225
    np.testing.assert_allclose(ours, kernel["similarity"].loc[ours.index], rtol=1e-6)
    assert table.loc[table["observed"] == 15, "observed_text"].iloc[0] == HOSTILE["seemingly_toxic"]


def test_a_saved_text_is_no_formula(show, downloads):
    driver = show("view=benchmarks")
    text = saved(driver, downloads, "[aria-label='Save refused-safe-prompts as CSV']")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["prompt"] for row in rows} == {HOSTILE["seemingly_toxic"], "Ask own-0?"}
    assert not [cell for row in rows for cell in row.values() if cell[:1] in ("=", "+", "@")]


@pytest.mark.parametrize("prompt", [3, 15, 27])
def test_hostile_texts_are_shown_whole_and_never_run(prompt, show, made):
    driver = show(f"view=prompt&prompt={prompt}")
    wanted = made.run.prompts["text"][prompt]
    if len(wanted) > 700:
        assert len(text_of(driver, ".prompt-head .words")) < 1000
        click(driver, ".prompt-head button.plain")
    seen = find(driver, ".prompt-head .words")[0].get_attribute("textContent")
    for character, name in (("\u202e", "U+202E"), ("\u202c", "U+202C"), ("\x07", "U+0007")):
        wanted = wanted.replace(character, name)
    assert seen == wanted
    click(driver, "#tab-training"), click(driver, "#tab-benchmarks")
    assert not find(driver, "main img, main script, main b > script")


def test_toxic_texts_are_blurred_until_pointed_at(show):
    driver = show("view=prompt&prompt=30&blur=1")
    style = "return getComputedStyle(document.querySelector('.prompt-head .toxic')).filter"
    assert driver.execute_script(style).startswith("blur")
    click(driver, "#blur")
    assert driver.execute_script(style) == "none"
    driver = show("view=prompt&prompt=12&blur=1")
    assert not find(driver, ".prompt-head .toxic")


def luminance(driver):
    colour = driver.execute_script(
        "return getComputedStyle(document.documentElement).backgroundColor"
    )
    return sum(map(int, colour[4:-1].split(", "))) / 3


def test_paper_is_drawn_in_light_colours_and_for_its_width(show):
    driver = show("view=training&theme=dark")
    widths = "return [...document.querySelectorAll('.chart canvas')].map((c) => c.clientWidth)"
    on_screen = driver.execute_script(widths)
    driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert driver.execute_script("return document.documentElement.dataset.theme") == "light"
    on_paper = driver.execute_script(widths)
    assert len(on_paper) == len(on_screen) and max(on_paper) <= 350 < max(on_screen)
    driver.execute_script("dispatchEvent(new Event('afterprint'))")
    assert driver.execute_script("return document.documentElement.dataset.theme") == "dark"
    assert driver.execute_script(widths) == on_screen


def test_dark_colours_are_taken_from_the_system_or_chosen(show):
    driver = show("view=training")
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    assert luminance(driver) > 240
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    wait_for(lambda: luminance(driver) < 60)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    driver = show("view=training&theme=dark")
    assert luminance(driver) < 60
    assert "#EE99AA" in driver.page_source  # the dark companion of toxic's colour


@pytest.mark.parametrize("view", ["overview", "training", "prompt", "layers", "benchmarks"])
def test_a_page_320_pixels_wide_does_not_scroll_sideways(view, show, driver):
    size = {"width": 320, "height": 700, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        show(f"view={view}&prompt=15")
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 320
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_page_that_follows_a_run_offers_to_load_itself_again_and_keeps_its_place(show, made):
    page = make_report([made.place], reload_seconds=5).save(made.place / "following.html")
    driver = show("view=layers&step=5", page)
    driver.execute_script("window.before = true")
    click(driver, "#reload")
    wait_for(
        lambda: driver.execute_script(
            "return window.before === undefined && document.body.dataset.ready"
        )
    )
    assert "step=5" in driver.current_url and find(driver, "#view-layers")[0].is_displayed()


def test_runs_on_other_prompts_are_apart_and_said(show, tmp_path):
    write_run(tmp_path / "a-ntk")
    write_run(tmp_path / "b-ntk", texts={"toxic": "another ?"})
    driver = show("", make_report([tmp_path]).save(tmp_path / "r.html"))
    assert "different prompts" in text_of(driver, "#apart")
    assert "b, step" not in text_of(driver, "#glance")
    driver = show("set=1", tmp_path / "r.html")
    assert "b, step" in text_of(driver, "#glance")


def test_a_page_inside_another_one_works_without_an_origin(driver, made, tmp_path):
    (tmp_path / "frame.html").write_text(made.run.report()._repr_html_())
    driver.get(f"file://{tmp_path}/frame.html")
    driver.switch_to.frame(0)
    wait_for(lambda: driver.execute_script("return document.body.dataset.ready === 'yes'"))
    click(driver, "#tab-training")
    assert drawn_pictures(driver, "training") == (5, 5)
    driver.switch_to.default_content()
