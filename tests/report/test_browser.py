"""The page in a real headless Chromium: no console error, no overflow, every figure has a size, sorting works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from make_results import make_results

from hrsa_jax.report import page, studies, studies_page

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
]
# Runs after the page's own script, in a frame as wide as the screen under test, and leaves its findings in the title.
PROBE = """<script>
addEventListener("load", () => {
  const root = document.documentElement, table = document.querySelector("#benchmark-table");
  document.querySelectorAll("details").forEach((entry) => { entry.open = true; });
  const empty = [...document.querySelectorAll(".plot svg")].filter((svg) => {
    const box = svg.getBoundingClientRect(), drawn = svg.getBBox();
    return box.width < 150 || box.height < 40 || drawn.width < 50 || drawn.height < 20;
  });
  const wide = [...document.querySelectorAll("main *")].filter((node) => !node.closest(".scroll, svg")
    && node.getBoundingClientRect().right > root.clientWidth + 1).map((node) => node.tagName);
  const broken = [], walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    if (node.parentElement.closest("svg, pre, code")) continue;
    for (const word of node.data.matchAll(/[A-Za-z]{4,18}/g)) {  // a longer one may have to be broken
      const range = document.createRange();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1) broken.push(word[0]);
    }
  }
  const cut = [...document.querySelectorAll("main *")].filter((node) => node.scrollWidth > node.clientWidth + 1
    && getComputedStyle(node).overflowX !== "visible" && !getComputedStyle(node).backgroundImage.includes("gradient")
    && getComputedStyle(node).textOverflow !== "ellipsis").map((node) => node.tagName + "." + node.className);
  const order = () => [...table.tBodies[0].rows].map((row) => row.cells[2].textContent);
  table.querySelectorAll("thead button")[2].click();
  const down = order();
  table.querySelectorAll("thead button")[2].click();
  parent.postMessage({ width: innerWidth, overflow: root.scrollWidth - root.clientWidth, empty: empty.length, wide,
    broken, cut,
    figures: document.querySelectorAll(".plot svg").length, dark: matchMedia("(prefers-color-scheme: dark)").matches,
    ink: getComputedStyle(document.body).color, down, up: order() }, "*");
});
</script></body>"""
FRAME = """<!doctype html><title>waiting</title><script>
addEventListener("message", (event) => {{ document.title = JSON.stringify(event.data); }});
</script><iframe src="page.html" style="width: {width}px; height: 900px; border: 0"></iframe>"""


def _page(case: str) -> str:
    if case != "studies":
        return page.render(json.loads(json.dumps(make_results(case))))
    made = {name: make_results(name, layers=5) for name in ("no_advantage", "advantage", "inconclusive_three_seeds")}
    sources = {name: f"runs/{name}" for name in made}
    return studies_page.render(studies.compare(made), sources, "python launch.py --config=configs/report.py")


def _open(folder: Path, case: str, width: int, *extra: str) -> tuple[dict, str]:
    html = _page(case)
    (folder / "page.html").write_text(html.replace("</body>", PROBE), encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.format(width=width))
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000", *extra]
    run = subprocess.run(
        [*command, "--virtual-time-budget=20000", "--dump-dom", f"file://{folder / 'frame.html'}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", run.stdout)
    assert title, run.stderr[-2000:]
    assert title[1] != "waiting", run.stderr[-2000:]
    return json.loads(title[1].replace("&amp;", "&")), run.stderr


@pytest.mark.parametrize(
    ("case", "width", "dark"),
    [
        *(("controlled", 1280, False), ("controlled", 390, True), ("broken_parts", 390, False)),
        *(("advantage", 1280, True), ("studies", 1280, True), ("studies", 390, False)),
    ],
)
def test_page_in_chromium(case: str, width: int, dark: bool, tmp_path: Path) -> None:
    extra = ["--blink-settings=preferredColorScheme=0"] if dark else []
    found, log = _open(tmp_path, case, width, *extra)
    assert "CONSOLE" not in log, log
    assert found["width"] == width
    assert found["overflow"] <= 0
    assert found["wide"] == []
    assert found["broken"] == []  # no word is broken in its middle
    assert found["cut"] == []  # what is wider than its box shows that it goes on
    assert found["figures"] >= (5 if case == "studies" else 15)
    assert found["empty"] == 0
    assert found["dark"] == dark
    assert found["ink"] == ("rgb(229, 233, 239)" if dark else "rgb(29, 35, 43)")
    assert found["down"] == sorted(found["down"], key=float, reverse=True)
    assert found["up"] == found["down"][::-1]
