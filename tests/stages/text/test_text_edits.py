"""Edits of text before rules measure it."""

from stages.text.text_edits import remove_boilerplate

ENGLISH = "This is a plain sentence about nothing at all, written in English."


def test_boilerplate_around_the_content_is_removed():
    kept = f"{ENGLISH}\n\nHome is where the heart is, said the menu."
    page = f"Skip to main content\nHome\n{ENGLISH}\n\nRead more about it\n\n"
    page += "Home is where the heart is, said the menu.\n© 2024 Acme. All rights reserved."
    assert remove_boilerplate(page) == kept
    assert remove_boilerplate(kept) == kept


def test_boilerplate_beside_letters_of_other_scripts_is_removed():
    page = f"Copyright版权归原作者\nLog in登录\n{ENGLISH}\nCopyrights are a kind of property."
    assert remove_boilerplate(page) == page.split("\n", 2)[2]
