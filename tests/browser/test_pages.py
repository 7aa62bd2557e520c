"""Look at the pictures and pages in Chromium, on a phone and on a desktop, in light and in dark mode.

`make browser` runs these tests. They need playwright and Chromium, and are skipped where one of them is missing. They
save screenshots in build/screenshots.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
from isolated import environment

from pyray_ser.inspection import inspect

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs Chromium", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
PICTURES = sorted((ROOT / "docs" / "pictures").glob("*.svg"))
SCREENSHOTS = ROOT / "build" / "screenshots"
SITE = Path(os.environ.get("PYRAY_SER_SITE") or ROOT / "build" / "docs" / "html")
# The path of axe.min.js, which finds accessibility problems.
AXE = os.environ.get("PYRAY_SER_AXE")
# Chromium fetches nothing, and its sandbox does not work for root.
SWITCHES = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WIDTHS = {"phone": 390, "desktop": 1280}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield running
        running.close()


class Shown:
    """A page in the browser, with the errors that it reported."""

    def __init__(self, browser, path, scheme="light", device="desktop"):
        self.errors = []
        self.page = browser.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfailed", lambda request: self.errors.append(f"cannot load {request.url}"))
        self.page.on(
            "console",
            lambda message: self.errors.append(message.text) if message.type in ("error", "warning") else None,
        )
        self.change(scheme, device)
        self.page.goto(path.as_uri())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.page.close()

    def change(self, scheme, device):
        self.page.emulate_media(color_scheme=scheme)
        self.page.set_viewport_size({"width": WIDTHS[device], "height": 900})

    def problems(self):
        """Return the errors, and how many pixels of the page a visitor sees only by scrolling sideways."""
        wide = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return [*self.errors, *([f"{wide} px too wide"] if wide > 0 else [])]

    def accessibility(self):
        """Return the serious and critical findings of axe-core."""
        if AXE is None:
            return []
        self.page.evaluate(Path(AXE).read_text(encoding="utf-8"))
        # Without preload: a page from a file may not read its style sheets.
        found = self.page.evaluate("axe.run({preload: false})")["violations"]
        return [
            f"{rule['id']}: {rule['help']}: {node['html'][:200]}"
            for rule in found
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]


def check(browser, path, name):
    """Open a page in light and dark mode on each device, save screenshots, and check it."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with Shown(browser, path) as shown:
        for scheme in ("light", "dark"):
            for device in WIDTHS:
                shown.change(scheme, device)
                shown.page.screenshot(path=SCREENSHOTS / f"{name}-{scheme}-{device}.png", full_page=True)
                assert shown.problems() == [], (scheme, device)
            assert shown.accessibility() == [], scheme


def page_of(picture, folder, inline):
    """Write a page that shows a picture, either as an image or as a part of the page."""
    text = picture.read_text(encoding="utf-8")
    shown = text if inline else f'<img src="{picture.as_uri()}" alt="{picture.stem}" style="max-width: 100%">'
    path = folder / f"{picture.stem}.html"
    path.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{picture.stem}</title><style>:root {{ color-scheme: light dark; }} body {{ margin: 16px; }} "
        f"svg {{ max-width: 100%; height: auto; }}</style></head><body><main><h1>{picture.stem}</h1>{shown}</main>",
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_a_picture_fits_the_screen(browser, tmp_path, picture):
    check(browser, page_of(picture, tmp_path, inline=False), picture.stem)


# The rectangles of all texts, in pixels, and the part of each that is outside of the picture.
TEXTS = """() => {
    const whole = document.querySelector("svg").getBoundingClientRect();
    return [...document.querySelectorAll("svg text")].filter(text => text.textContent.trim()).map(text => {
        const box = text.getBoundingClientRect();
        return {text: text.textContent, left: box.left, right: box.right, top: box.top, bottom: box.bottom,
                outside: Math.max(whole.left - box.left, box.right - whole.right, whole.top - box.top,
                                  box.bottom - whole.bottom)};
    });
}"""


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_texts_of_a_picture_neither_overlap_nor_leave_it(browser, tmp_path, picture):
    with Shown(browser, page_of(picture, tmp_path, inline=True)) as shown:
        texts = shown.page.evaluate(TEXTS)
        assert shown.accessibility() == []
    assert texts
    assert [text["text"] for text in texts if text["outside"] > 1] == []
    if picture.stem.startswith("terminal-"):
        return  # lines of a terminal touch each other
    overlaps = [
        (one["text"], other["text"])
        for number, one in enumerate(texts)
        for other in texts[:number]
        if min(one["right"], other["right"]) - max(one["left"], other["left"]) > 1
        and min(one["bottom"], other["bottom"]) - max(one["top"], other["top"]) > 3
    ]
    assert overlaps == []


@pytest.fixture(scope="module")
def map_page(tmp_path_factory):
    """Return a page that `pyray-ser map --html` wrote about a store in use."""
    folder = tmp_path_factory.mktemp("map")
    name = f"test-{uuid.uuid4().hex}"
    program = ROOT / "tools" / "pictures" / "example" / "store.py"
    with subprocess.Popen(
        [sys.executable, "-P", program, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment(),
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        subprocess.run(
            [sys.executable, "-P", "-m", "pyray_ser", "map", name, "--html", folder / "map.html"],
            check=True, env=environment(),
        )  # fmt: skip
        process.stdin.close()
    return folder / "map.html"


def test_the_map_of_a_store(browser, map_page):
    check(browser, map_page, "map")


def test_the_legend_of_the_map_has_the_colours_of_the_cells(browser, map_page):
    for scheme in ("light", "dark"):
        with Shown(browser, map_page, scheme) as shown:
            colours = shown.page.evaluate("""() => Object.fromEntries([...document.querySelectorAll(".key .swatch")].map(
                swatch => [swatch.classList[1], getComputedStyle(swatch).backgroundColor]))""")
            cells = shown.page.evaluate("""() => Object.fromEntries([...document.querySelectorAll("svg rect")].map(
                cell => [cell.classList[0], getComputedStyle(cell).fill]))""")
        assert {"free", "live", "pinned"} <= cells.keys()
        assert len(set(colours.values())) == 5
        assert {kind: colours[kind] for kind in cells} == cells


def test_the_list_of_objects_is_sorted_by_the_column_that_is_clicked(browser, map_page):
    with Shown(browser, map_page) as shown:
        read = """head => { const column = [...document.querySelectorAll("th")].findIndex(th => th.innerText === head);
            return [...document.querySelectorAll("tbody tr")].map(row => row.cells[column].dataset.sort
                ?? row.cells[column].innerText); }"""
        sizes = [int(size) for size in shown.page.evaluate(read, "size")]
        assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 2
        shown.page.get_by_role("button", name="size").click()
        assert [int(size) for size in shown.page.evaluate(read, "size")] == sorted(sizes)
        shown.page.get_by_role("button", name="name").click()
        names = shown.page.evaluate(read, "name")
        assert names == sorted(names, reverse=True) and "weights" in names
        assert shown.errors == []


def test_an_object_of_the_map_and_its_line_are_shown_together(browser, map_page):
    with Shown(browser, map_page) as shown:
        shown.page.locator("tbody tr", has_text="measurements").hover()
        tips = shown.page.locator("g.shown title").all_text_contents()
        assert tips and all("measurements: 30.5 MiB, pinned" in tip for tip in tips)


@pytest.fixture(scope="module")
def treemap(tmp_path_factory):
    """Return the page about an object of many sizes."""
    value = {
        "model": {f"layer{i}": np.zeros((200, 50 + 40 * i)) for i in range(12)},
        "raw": bytes(300_000),
        "words": {f"word{i}": i for i in range(20_000)},
        "a_table_with_a_rather_long_name_2026": {"1234567890": np.zeros(20_000), "lock": iter([1])},
        "callback": lambda: None,
    }
    page = tmp_path_factory.mktemp("treemap") / "treemap.html"
    page.write_text(inspect(value, "value").to_html(), encoding="utf-8")
    return page


def test_a_treemap(browser, treemap):
    check(browser, treemap, "treemap")


@pytest.mark.parametrize("device", WIDTHS)
def test_labels_of_a_treemap_stay_inside_their_rectangles(browser, treemap, device):
    with Shown(browser, treemap, device=device) as shown:
        labels = shown.page.evaluate("""() => [...document.querySelectorAll("svg g")].flatMap(group => {
            const box = group.querySelector("rect").getBoundingClientRect();
            return [...group.children].filter(part => part.tagName === "text" && box.width > 0).map(part => {
                const text = part.getBoundingClientRect();
                return [part.textContent, text.right - box.right, text.bottom - box.bottom];
            });
        })""")
    assert len(labels) > 8
    assert [label for label, right, bottom in labels if right > 0.5 or bottom > 0.5] == []


# The home page, a how-to guide, and a page about functions; they are shown if the site has been built.
SITE_PAGES = ["index.html", "how-to/pools.html", "reference/api/objects.html"] if SITE.is_dir() else []


@pytest.mark.parametrize("page", SITE_PAGES)
def test_a_page_of_the_site(browser, page):
    check(browser, SITE / page, f"site-{page.removesuffix('.html').replace('/', '-')}")
