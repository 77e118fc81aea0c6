"""The explorer as somebody uses it, in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.shown_study import METHODS, ShownStudy

PEOPLE, IMAGES, PHOTOGRAPHS = 12, 20, 3
GENERATED = PEOPLE * IMAGES * len(METHODS)
ALL = GENERATED + PEOPLE * PHOTOGRAPHS + 1
TILES = "#lines .tile[data-i]"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("shown")
    study = ShownStudy(root, people=PEOPLE, photographs=PHOTOGRAPHS, images=IMAGES)
    return study.explore().as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The open page; whatever it complains of, or asks of a network, fails the test."""
    page = browser.new_page(viewport={"width": 1300, "height": 800})
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text))
    page.on("request", lambda request: wrong.append(request.url) if away(request.url) else None)
    page.set_default_timeout(5000)
    page.goto(address)
    yield page
    page.close()
    assert wrong == []


def away(url: str) -> bool:
    return not url.startswith(("file://", "data:"))


def counted(page: Page, count: int) -> None:
    text = f"{ALL} images" if count == ALL else f"{count} of {ALL} images"
    expect(page.locator("#count")).to_have_text(text)


def hash_of(page: Page, part: str) -> None:
    page.wait_for_function("part => location.hash.includes(part)", arg=part)


def test_it_opens_from_a_file_with_methods_side_by_side(page: Page) -> None:
    counted(page, ALL)
    heads = page.locator("#heads span").all_inner_texts()
    assert heads == ["Same prompt, same noise", "untuned", "DreamBooth", "ID-Booth"]
    first = page.locator(".line[data-line='1']")  # below the photographs
    told = [tile.get_attribute("aria-label") for tile in first.locator(".tile").all()]
    assert [text.split(";")[1] for text in told] == [
        f" {method}, Complex 0" for method in ("untuned", "DreamBooth", "ID-Booth")
    ]
    expect(first.locator(".prompt")).to_have_text("beach")
    sheet = page.evaluate("""() => new Promise(done => {
        const made = new Image();
        made.onload = () => done(made.naturalWidth);
        made.src = "sheets/0.jpg";
    })""")
    assert sheet == 5 * 32
    assert page.locator("header a[href='../report.html']").count() == 2


def test_only_what_is_seen_is_drawn(page: Page) -> None:
    assert page.locator(TILES).count() < 80
    assert page.locator("#lines").bounding_box()["height"] > 20 * page.viewport_size["height"]
    page.evaluate("document.querySelector('#list').scrollTop = 1e9")
    expect(page.locator(f".line .label small >> text=ID_{PEOPLE} · Complex 19")).to_be_visible()
    assert page.locator(TILES).count() < 80


def test_filters_join(page: Page) -> None:
    page.fill("#q", "beach")
    counted(page, GENERATED // 4)
    page.get_by_role("checkbox", name="untuned").uncheck()
    counted(page, GENERATED // 4 // 3 * 2)
    page.get_by_label("Person", exact=True).select_option("ID_2")
    counted(page, 10)
    page.fill("#q", "")
    page.get_by_label("Kept or left out").select_option("out:no face")
    counted(page, 2)
    page.get_by_role("button", name="Show all").first.click()
    counted(page, ALL)
    page.get_by_label("Shows, by the audit").select_option("nobody")
    counted(page, PEOPLE * (IMAGES - 1))
    expect(
        page.locator(".tile.faded").first
    ).to_be_visible()  # the others of its row stay beside it
    page.fill("#q", "no such word")
    expect(page.locator("#none")).to_be_visible()


def test_a_range_of_similarity_filters_and_stands_in_the_address(page: Page) -> None:
    low = page.get_by_label("Similarity to the person, from")
    low.fill("0.5")
    hash_of(page, "sim=0.50..")
    own = page.evaluate(
        "() => EXPLORER.items.flatMap(part => part['judge_b/own']).filter(own => own >= 0.5).length"
    )
    assert 0 < own < ALL
    counted(page, own)
    low.focus()
    page.keyboard.press("ArrowRight")
    hash_of(page, "sim=0.51..")


def test_another_judge_judges(page: Page) -> None:
    tile = page.locator(".line[data-line='1'] .tile b").first
    before = tile.inner_text()
    judge = page.get_by_label("Similarity judged by")
    judge.select_option("judge_a")
    expect(tile).not_to_have_text(before)
    expect(judge).to_have_value("judge_a")
    hash_of(page, "judge=judge_a")


def test_sorting(page: Page) -> None:
    page.get_by_role("button", name="Grid").click()
    page.get_by_label("Sort").select_option("sim")
    page.locator("#turn").click()
    shown = [float(text) for text in page.locator(f"{TILES} .cap b").all_inner_texts()[:8]]
    assert shown == sorted(shown, reverse=True)
    page.get_by_role("button", name="Side by side").click()
    page.get_by_label("Sort").select_option("spread")
    texts = page.locator(".label small >> text=differ by").all_inner_texts()
    spread = [float(text.split()[-1]) for text in texts]
    assert len(spread) > 3 and spread == sorted(spread, reverse=True)


def test_the_keyboard_goes_everywhere(page: Page) -> None:
    page.keyboard.press("/")
    expect(page.locator("#q")).to_be_focused()
    page.keyboard.type("office")
    counted(page, GENERATED // 4)
    page.keyboard.press("Enter")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    focused = page.locator(":focus")
    assert focused.get_attribute("data-column") == "1"
    name = focused.get_attribute("aria-label")
    page.keyboard.press("Enter")
    expect(page.locator("#one")).to_be_visible()
    expect(page.locator("#one-title")).to_have_text(
        ", ".join(name.split("; ")[:1]) + " · DreamBooth · Complex 1"
    )
    page.keyboard.press("ArrowDown")
    expect(page.locator("#one-title")).to_have_text("ID_1 · DreamBooth · Complex 5")
    page.keyboard.press("Escape")
    expect(page.locator("#one")).to_be_hidden()
    assert page.locator(":focus").get_attribute("data-column") == "1"
    page.keyboard.press("/")
    page.keyboard.press("Escape")
    counted(page, ALL)


def test_an_open_image_tells_where_it_all_comes_from(page: Page) -> None:
    page.evaluate("location.hash = '#open=demo/idbooth/complex/ID_3/6.png'")
    one = page.locator("#one")
    expect(one.locator("h2")).to_have_text("ID_3 · ID-Booth · Complex 6")
    big = one.locator("img.big")
    assert big.get_attribute("src") == "../samples/demo/idbooth/complex/ID_3/6.png"
    page.wait_for_function("document.querySelector('img.big').naturalWidth === 32")
    expect(one.locator(".strip").first.locator(".tile")).to_have_count(len(METHODS))
    expect(one).to_contain_text("Nearest photograph")
    expect(one).to_contain_text("Nearest other person")
    expect(one).to_contain_text("features/demo/idbooth/complex/judge_b.safetensors")
    expect(one).to_contain_text(
        "mean cosine with the rows of ID_3 in features/real/judge_b.safetensors"
    )
    rows = one.locator("details summary code")
    expect(rows).to_have_text(
        [
            "samples/demo/idbooth/complex/manifest.parquet",
            "aligned/demo/idbooth/complex/manifest.parquet",
            "audit/demo/idbooth/complex.csv",
        ]
    )
    expect(one).to_contain_text(str(2**62 + 6))  # the seed, whole
    one.locator(".strip .tile").first.click()
    expect(one.locator("h2")).to_have_text("ID_3 · untuned · Complex 6")


def test_a_link_keeps_what_is_seen_and_back_returns(browser: Browser, page: Page) -> None:
    page.fill("#q", "forest")
    page.get_by_label("Person", exact=True).select_option("ID_4")
    page.get_by_role("button", name="Grid").click()
    page.get_by_label("Sort").select_option("quality")
    page.locator(TILES).nth(3).click()
    hash_of(page, "open=")
    title = page.locator("#one-title").inner_text()
    other = browser.new_page(viewport={"width": 900, "height": 700}, color_scheme="dark")
    other.goto(page.url)
    expect(other.locator("#one-title")).to_have_text(title)
    other.keyboard.press("Escape")
    expect(other.locator("#count")).to_have_text(page.locator("#count").inner_text())
    expect(other.locator("#q")).to_have_value("forest")
    other.close()
    page.keyboard.press("Escape")
    page.evaluate("location.hash = '#person=ID_5'")
    counted(page, IMAGES * len(METHODS) + PHOTOGRAPHS)


def test_it_can_be_used_without_seeing_it(page: Page) -> None:
    unnamed = page.evaluate("""() => [...document.querySelectorAll("button, input, select, a, img")]
        .filter(of => !(of.ariaLabel || of.textContent.trim() || of.alt || of.labels?.length))
        .map(of => of.outerHTML)""")
    assert unnamed == []
    assert page.locator(f"{TILES}[tabindex='0']").count() == 1


def test_who_left_the_study_is_not_there(page: Page) -> None:
    assert "ID_1" in page.locator("aside").inner_text()
    assert "ID_0" not in page.evaluate("JSON.stringify(EXPLORER)")
