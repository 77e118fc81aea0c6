"""Measure the explorer on a made-up study: time to the first picture, to filter, to scroll; sizes.

    python benchmarks/explorer.py --images 20000

Prints a table. A real browser opens the page from a file; it has to be installed (chromium).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import sync_playwright

from pipeline_steps.evidence.explorer.page import FOLDER

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))
from shown_study import METHODS, ShownStudy

PER_PERSON = 50  # images of each method
SEEN = """() => new Promise(done => {
    const seen = document.querySelector('#lines .tile[data-i] .pic');
    if (!seen) return done(-1);
    const made = new Image();
    made.onload = () => made.decode().then(() => requestAnimationFrame(
        () => requestAnimationFrame(() => done(performance.now()))));
    made.src = getComputedStyle(seen).backgroundImage.slice(5, -2);
})"""
FILTERED = """([id, value, event]) => new Promise(done => {
    const field = document.querySelector(id), began = performance.now();
    field.value = value;
    field.dispatchEvent(new Event(event, {bubbles: true}));
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)));
})"""
SCROLLED = """() => new Promise(done => {
    const list = document.querySelector('#list'), gaps = [];
    let last = performance.now(), left = 60;
    const step = now => {
        gaps.push(now - last);
        last = now;
        list.scrollTop += 700;
        if (left--) requestAnimationFrame(step);
        else done(gaps.slice(1).sort((a, b) => a - b)[Math.floor(gaps.length * 0.95) - 1]);
    };
    requestAnimationFrame(step);
})"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--times", type=int, default=3, help="openings, of which the median counts")
    given = parser.parse_args(argv)
    people = max(1, given.images // (len(METHODS) * PER_PERSON))
    with tempfile.TemporaryDirectory() as folder:
        study = ShownStudy(Path(folder), people=people, photographs=5, images=PER_PERSON)
        began = time.perf_counter()
        page = study.explore()
        print(f"step                        {time.perf_counter() - began:6.1f} s")
        print(f"images                      {people * (len(METHODS) * PER_PERSON + 5) + 1:6d}")
        measure(page, given.times)
    return 0


def measure(page: Path, times: int) -> None:
    """Print what a browser needs."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        first = []
        for _ in range(times):
            tab = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
            tab.goto(page.as_uri())
            first.append(tab.evaluate(SEEN) / 1000)
        print(f"first picture               {sorted(first)[times // 2]:6.2f} s")
        for what, fill in {
            "prompt word": ["#q", "beach", "input"],
            "sorted by similarity": ["#sort", "sim", "change"],
            "left out": ["select[name=state]", "out", "change"],
            "all again": ["select[name=state]", "", "change"],
        }.items():
            print(f"filter, {what:20s}{tab.evaluate(FILTERED, fill) / 1000:6.2f} s")
        tab.click("[data-view=grid]")
        tab.fill("#q", "")
        print(f"scrolling, 95 % of frames   {tab.evaluate(SCROLLED):6.0f} ms at most")
        browser.close()
    for name in ("explorer.js", "explorer.css"):
        print(f"{name:28s}{(FOLDER / name).stat().st_size / 1024:6.1f} KiB")
    for name in ("study", "items"):
        size = sum(path.stat().st_size for path in page.parent.glob(f"data/{name}*.js"))
        print(f"data/{name:23s}{size / 2**20:6.2f} MiB")


if __name__ == "__main__":
    raise SystemExit(main())
