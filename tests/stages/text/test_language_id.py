"""Language identification of any text."""

import socket

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.text.language_id import detect_language
from stages.text.unicode_repair import repair


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Return the list of all files that are in the folder, sorted by name.", "en"),
        ("Gibt die Liste aller Dateien zurück, die sich im Ordner befinden.", "de"),
        ("Cette fonction renvoie la liste des fichiers du dossier, triée par nom.", "fr"),
        ("这个函数返回文件夹中的所有文件，并按名称排序。", "zh"),
        ("天晴白雲高，喬木蔭初暑。\n久客倦紅塵，愛此崖寺古。", "zh"),
        ("東京都渋谷区神宮前一丁目二番三号株式会社日本経済新聞社東京本社編集局", "ja"),
        ("この関数はフォルダ内のすべてのファイルを名前順に返します。", "ja"),
        ("Эта функция возвращает список файлов в папке.", "ru"),
    ],
)
def test_languages_are_detected_without_a_network(text, code, monkeypatch):
    def refuse(*_):
        raise AssertionError("a network connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    found, confidence = detect_language(text)
    assert found == code and 0.5 < confidence <= 1
    assert detect_language(f"{text} " * 200)[0] == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The river rose overnight and the lower meadow was flooded.", "en"),
        ("Der Fluss stieg über Nacht und die untere Wiese wurde überflutet.", "de"),
        ("La rivière a débordé pendant la nuit et le pré est inondé.", "fr"),
        ("Rzeka podniosła się w nocy i łąka została zalana.", "pl"),
        ("Nehir gece boyunca yükseldi ve çayır sular altında kaldı.", "tr"),
        ("Река поднялась за ночь и затопила нижний луг.", "ru"),
    ],
)
def test_capitals_change_no_language(text, code):
    for written in (text.upper(), f"NOTICE. {text.upper()} See page 7."):
        found, confidence = detect_language(written)
        assert found == code and confidence > 0.5


@pytest.mark.parametrize("text", ["", " \n ", "123 456", "---", "\0"])
def test_no_words_no_language(text):
    assert detect_language(text) == ("und", 0.0)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200))
def test_any_text_has_some_answer(text):
    code, confidence = detect_language(repair(text))
    assert code and 0 <= confidence <= 1 and not np.isnan(confidence)
