from __future__ import annotations

from html.parser import HTMLParser

from burnish.report.preview_html import preview_page
from burnish.report.tokens import CUT, PROMPT, TRAINED, Passage, Piece, PromptView, Segment

TAGS = {"html", "meta", "title", "style", "h1", "h2", "h3", "p", "b", "pre", "section", "div", "span"}


class Reader(HTMLParser):
    """Tags, attributes, and the ids and text of each kind of segment."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.tokens, self._kind, self._in_token = set(), set(), {}, None, False

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        values = dict(attrs)
        kinds = (values.get("class") or "").split()
        if "segment" in kinds:
            self._kind = kinds[1]
        self._in_token = "t" in kinds
        if self._in_token:
            self.tokens.setdefault(self._kind, []).append([values["title"], ""])

    def handle_data(self, data):
        if self._in_token:
            self.tokens[self._kind][-1][1] += data

    def handle_endtag(self, tag):
        self._in_token = False


def read(page):
    reader = Reader()
    reader.feed(page)
    return reader


def hostile_view():
    evil = "</span><script>alert(1)</script><img src=//x onerror=alert(2)>' \" & \x1b[2J\u202e\n"
    prompt = Passage("prompt", (Segment(PROMPT, (Piece((5,), evil),)),))
    chosen = (
        Segment(TRAINED, (Piece((6, 7), "é"), Piece((2,), "<b>", is_special=True))),
        Segment(CUT, (Piece((8,), evil),)),
    )
    return PromptView(3, prompt, (Passage("<i>chosen", chosen),))


def test_the_page_holds_every_id_in_its_kind():
    tokens = read(preview_page("t", [hostile_view()])).tokens
    assert [ids for ids, _ in tokens["trained"]] == ["6 7", "2"]
    assert [text for _, text in tokens["trained"]] == ["é", "<b>"]
    assert [ids for ids, _ in tokens["prompt"]] == ["5"]
    assert [ids for ids, _ in tokens["cut"]] == ["8"]


def test_hostile_text_is_text():
    page = preview_page("<script>t</script>\x1b", [hostile_view()], ["row 1: <script>", "\x1b[2J"])
    reader = read(page)
    assert reader.tags == TAGS
    assert reader.attributes <= {"class", "title", "lang", "charset", "http-equiv", "content", "name"}
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    shown = reader.tokens["prompt"][0][1]
    assert shown == "</span><script>alert(1)</script><img src=//x onerror=alert(2)>' \" & \\x1b[2J\\u202e↵\n"


def test_the_page_is_self_contained():
    page = preview_page("t", [hostile_view()])
    assert "default-src 'none'" in page
    assert "url(" not in page
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page
    assert "+ trained" in page
