"""The page of a run: all of it there, nothing from elsewhere, and no text that can break it."""

import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from recipes import figures, paper, plan_table, report
from recipes.page import write_page
from test_recipes_plan import PLAN
from test_recipes_report import labelled, results  # noqa: F401

VOID = {"meta", "img", "br", "link", "input", "hr"}
PNG = b"\x89PNG\r\n\x1a\nnot really"


class Reader(HTMLParser):
    """Elements of a page, their attributes and text; every end tag must meet its beginning."""

    def __init__(self, page):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def whole(labelled):  # noqa: F811
    """Results with everything that a page can show."""
    labelled["models"]["bern"]["bits"] |= {"image_bytes": 150_528, "code_bytes": 256}
    labelled["data"] |= {"name": "CIFAR-10 (JPEG copy)", "test": 10_000, "image_shape": [224, 224, 3]}
    labelled["config"] |= {"warmup_epochs": 1, "hard": False, "ema": None, "model": ["simclr", "bern"]}
    return {
        **labelled,
        "command": "python examples/cifar10_full.py --preset cpu --data 'a & b'",
        "date": "2026-11-25",
        "environment": {"python": "3.11.7", "gpu": None, "packages": {"torch": "2.14.1"}, "commit": "abc"},
        "seconds": {"bern/pretrain": 7200.0, "supervised/train": 90.0, "this_call": 8000.0},
        "plan": PLAN,
    }


@pytest.fixture
def page(tmp_path):
    """Write the page of some results, by default without figures, and read it."""

    def write(content, views=None, pictures=()):
        path = tmp_path / "report.html"
        write_page(
            content,
            pictures,
            path,
            title=report.title(content),
            table=report.table(content),
            sentences=report.against_baselines(content),
            views=views,
        )
        return path.read_text()

    return write


def test_everything_is_there(whole, page):
    read = Reader(page(whole, PNG))
    for cells in report.table(whole):
        assert all(cell in read.text for cell in cells)
    for said in (
        report.title(whole),
        "588x",
        "An image of 224 x 224 x 3 values takes 150,528 bytes, its code 256.",
        *report.against_baselines(whole),
        "python examples/cifar10_full.py --preset cpu --data 'a & b'",
        "2026-11-25",
        "warmup epochs 1",
        "hard no",
        "ema none",
        "model simclr, bern",
        "torch 2.14.1",
        "commit abc",
        "test images 10,000",
        "StochCon Bern, pretraining 2.0 h",
        "Supervised, training 2 min",
        "this call 2.2 h",
        "Memory of a device",
    ):
        assert " ".join(said.split()) in read.words, said


def test_the_page_of_a_run_before_there_was_any_of_it(results, page):  # noqa: F811
    read = Reader(page(results))
    assert "SimCLR" in read.words
    for missing in ("Plan", "Views", "Beside the paper", "None", "Undefined", "Machine and versions"):
        assert missing not in read.words


def test_nothing_comes_from_elsewhere(whole, page):
    text = page(whole, PNG, [figures.loss(whole)])
    read = Reader(text)
    for tag, attributes in read.elements:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "url(" not in text
    assert "@import" not in text
    (policy,) = (a["content"] for a in read.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_figures_are_inside_whole_and_described(whole, page):
    pictures = [figures.loss(whole), figures.latent(whole)]
    images = Reader(page(whole, PNG, pictures)).all("img")
    assert len(images) == len(pictures) + 1
    for image, picture in zip(images, pictures, strict=False):
        kind, content = image["src"].split(";base64,")
        assert kind == "data:image/svg+xml"
        svg = ElementTree.fromstring(base64.b64decode(content))
        assert svg.tag.endswith("svg")
        assert image["alt"] == picture.alt
    assert base64.b64decode(images[-1]["src"].split(",")[1]) == PNG
    assert "original" in images[-1]["alt"]


def test_tables_name_their_rows_and_columns(whole, page):
    text = page(whole)
    read = Reader(text)
    labels = [table["aria-label"] for table in read.all("table")]
    assert len(labels) == len(set(labels)) == 8
    assert all(label in read.words for label in labels)
    scopes = [cell["scope"] for cell in read.all("th")]
    heads = (
        len(report.table(whole)[0]) + len(paper.COLUMNS) + len(plan_table.COLUMNS + plan_table.MEMORY_COLUMNS)
    )
    assert scopes.count("col") == heads
    assert scopes.count("row") == len(scopes) - heads == text.count('<tr><th scope="row"')


@pytest.mark.parametrize("text", ["<b>", "</table><script>alert(1)</script>", "{{ 7 * 7 }}", "\"&amp;'"])
def test_no_text_can_break_it(whole, page, text):
    whole["data"]["name"] = f"CIFAR-10 {text}"
    whole["command"] += text
    whole["config"][text] = text
    whole["environment"]["machine"] = text
    whole["seconds"][text] = 1.0
    read = Reader(page(whole))
    assert not read.all("script")
    assert not read.all("b")
    assert len(read.all("table")) == 8
    assert read.words.count(text) >= 6


def test_it_is_made_for_phones_and_for_the_dark(whole, page):
    text = page(whole)
    metas = {meta.get("name"): meta.get("content") for meta in Reader(text).all("meta")}
    assert metas["viewport"] == "width=device-width, initial-scale=1"
    assert metas["color-scheme"] == "light dark"
    assert "@media (prefers-color-scheme: dark)" in text
    assert re.search(r"figure img \{[^}]*background: #ffffff", text)
    assert text.count('class="scroll"') == len(Reader(text).all("table"))


def test_times_stand_in_the_order_of_the_work(whole, page):
    whole["seconds"] = dict.fromkeys(
        ("this_call", "bern/finetune", "bern/frozen", "bern/pretrain", "pixels/frozen", "simclr/pretrain"),
        60.0,
    )
    words = Reader(page(whole)).words
    table = words[words.index("Time of each part") :]
    assert table == (
        "Time of each part raw pixels, frozen evaluation 1 min SimCLR, pretraining 1 min "
        "StochCon Bern, pretraining 1 min StochCon Bern, frozen evaluation 1 min StochCon Bern, fine-tuning 1 min "
        "this call 1 min"
    )


def test_the_papers_figures_are_called_the_papers(whole, page):
    read = Reader(page(whole))
    place = read.words.index("Beside the paper")
    assert "The columns of the paper were not measured here" in read.words[place:]
    assert "ResNet-50" in read.words[place:]
    assert "96.42" not in read.words[:place]
    assert "96.42" in read.words[place:]


def test_the_same_results_give_the_same_page(whole, page):
    assert page(whole) == page(whole)
