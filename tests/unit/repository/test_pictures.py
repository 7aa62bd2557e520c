"""Test that pictures need no other file, fit light and dark mode, and show only figures of bench/RESULTS.md."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PICTURES = sorted((ROOT / "docs" / "pictures").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"


def numbers(text):
    """Return the numbers in a text, with the digits after the decimal point."""
    return [
        (float(found.replace(",", "")), len(found.partition(".")[2]))
        for found in re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?", text.replace(",\n", " "))
    ]


RECORDED = {number for number, _ in numbers((ROOT / "bench" / "RESULTS.md").read_text(encoding="utf-8"))}


def is_recorded(number, digits):
    """Return whether a number is one of bench/RESULTS.md, perhaps rounded or in the next larger unit."""
    return any(round(known / unit, digits) == number for known in RECORDED for unit in (1, 1000))


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_picture_is_described_and_needs_no_other_file(path):
    text = path.read_text(encoding="utf-8")
    root = ET.fromstring(text)
    assert root.get("role") == "img" and root.get("viewBox")
    title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert root.get("aria-labelledby").split() == [title.get("id"), description.get("id")]
    assert title.text and len(description.text) > 80
    assert not re.search(r"https?://(?!www\.w3\.org/)|@import|<script|<image", text)
    assert "/home/" not in text and "/root/" not in text
    if not path.stem.startswith("terminal-"):  # a terminal is dark in both modes
        assert "prefers-color-scheme:dark" in text


@pytest.mark.parametrize("name", ["comparison", "pickler", "pool", "tasks"])
def test_numbers_of_a_chart_are_in_the_results(name):
    root = ET.parse(ROOT / "docs" / "pictures" / f"{name}.svg").getroot()
    labels = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    # These texts have a unit; others are names and the numbers of an axis.
    figures = [label for label in labels if re.match(r"[\d,.]+(x| [µm]?s$| GB$)", label)]
    assert len(figures) >= 4
    assert [label for label in figures for number in numbers(re.sub("x", " ", label)) if not is_recorded(*number)] == []


@pytest.mark.parametrize("path", sorted((ROOT / "bench" / "data").glob("*.json")), ids=lambda path: path.stem)
def test_data_of_the_charts_name_their_source(path):
    found = json.loads(path.read_text())
    assert "bench/RESULTS.md" in found["source"] and found["command"]
    assert found["machine"]["date"] and found["machine"]["cpus"]


def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_figures_of_the_readme_are_in_the_results():
    table = re.search(r"## Results\n(.*?)\n\n\[", readme(), re.DOTALL)[1]
    rows = [re.sub("x", " ", cell) for line in table.splitlines() for cell in line.split("|")[2:]]
    found = [number for cell in rows for number in numbers(cell)]
    assert len(found) > 20
    assert [number for number in found if not is_recorded(*number)] == []
    alt = re.search(r'pool\.svg".*alt="([^"]*)"', readme())[1]
    assert {number for number, _ in numbers(alt)} >= {8.96, 0.29, 1.41, 0.36}


def test_links_and_pictures_of_the_readme_exist():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)|src=\"([^\"]+)\"", readme())
    assert len(targets) > 15
    assert [target for pair in targets for target in pair if target and not (ROOT / target).exists()] == []


def test_the_program_that_draws_refuses_an_unknown_kind(tmp_path):
    program = ROOT / "tools" / "pictures" / "draw.py"
    done = subprocess.run(
        [sys.executable, "-P", program, "--out", tmp_path, "diagrams", "sculptures"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "no such kind: sculptures" in done.stderr


def test_the_diagrams_are_those_that_the_program_draws(tmp_path):
    program = ROOT / "tools" / "pictures" / "draw.py"
    subprocess.run([sys.executable, "-P", program, "--out", tmp_path, "diagrams"], check=True, capture_output=True)
    for path in tmp_path.iterdir():
        assert path.read_text() == (ROOT / "docs" / "pictures" / path.name).read_text()
