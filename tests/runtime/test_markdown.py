from __future__ import annotations

from burnish.runtime.markdown import block, code, folded, one_line, table


def test_forms():
    assert table(["a", "b"], [["1|2", "3"]]) == "| a | b |\n| --- | --- |\n| 1\\|2 | 3 |"
    assert folded("more", "text") == "<details>\n<summary>more</summary>\n\ntext\n\n</details>"
    assert code("a`b\n c") == "`a'b c`"
    assert one_line(" a\n\tb ") == "a b"


def test_a_fence_is_longer_than_what_is_inside():
    assert block("text", ["x"]) == "```text\nx\n```"
    assert block("", ["a ```` b", "``"]) == "`````\na ```` b\n``\n`````"
