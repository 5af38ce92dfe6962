"""The pages that the command ``report`` writes, as a browser would read them."""

import re
from html.parser import HTMLParser

from command_line import run

SECTIONS = [
    "Runs",
    "Settings that differ",
    "Validation",
    "Evaluation",
    "Comparison",
    "Ablations",
    "Curves",
    "Reward distributions",
    "Entropy maps",
    "Rollouts",
]


class Reader(HTMLParser):
    """What a browser would make of a page, roughly."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.sections, self.links = [], {}, []
        self._section = None
        self._style = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "data")]
        self._style = tag == "style"
        if tag == "section":
            self._section = values["id"]
            self.sections[self._section] = []
        if tag in ("td", "th", "tr", "p", "summary") and self._section:
            self.sections[self._section].append("\n" if tag == "tr" else "")

    def handle_endtag(self, tag):
        self._style = False

    def handle_data(self, data):
        if self._section and not self._style:
            texts = self.sections[self._section]
            texts[-1:] = [(texts[-1] if texts else "") + (data if data.strip() else " ")]

    def text(self, section):
        return re.sub(" +", " ", " ".join(self.sections[section]))


def report(out, *folders):
    outcome = run("report", *folders, "--out", out)
    assert outcome.code == 0, outcome.stderr
    html = (out / "report.html").read_text()
    return outcome, html, Reader(html), (out / "report.md").read_text()
