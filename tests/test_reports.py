"""What a model's page says of its validation images, and the page of one image, through Flask's test client."""

import html
import io
import json
import re
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_pages
from flask.testing import FlaskClient
from test_pages import CLASSES, HOSTILE, picture, post

from shared import models
from shared.storage import image_key
from web import reports

PAGE = "/models/clothing/v/1"
app, client, filled = test_pages.app, test_pages.client, test_pages.filled  # fixtures


def text_of(client: FlaskClient, address: str = PAGE, **query: object) -> str:
    answer = client.get(address, query_string=query)
    assert answer.status_code == 200, answer.text
    return re.sub(r"\s+", " ", html.unescape(answer.text)).replace("\N{NO-BREAK SPACE}", " ")


def section(text: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">.*?</section>', text)
    return found[0] if found else ""


def pictures(text: str) -> list[str]:
    """The images that a part of a page leads to."""
    return re.findall(rf'<a href="{PAGE}/images/(\w{{64}})"><img', text)


@pytest.fixture
def older(filled: SimpleNamespace) -> SimpleNamespace:
    """The model as it was before predictions were kept."""
    filled.storage.delete(models.key("clothing", 1, "validation.parquet"))
    return filled


def test_a_page_shows_the_cost_of_each_precision_and_of_the_one_asked_for(client: FlaskClient, filled: SimpleNamespace) -> None:
    trust = section(text_of(client), "trust")
    assert re.findall(r'scope="row">([\d.]+) %', trust) == ["90", "95", "98", "99"]
    assert trust.count('75.0 %</td><td class="n wide-only">100.0 %</td><td class="n">25.0 %') == 4
    asked = section(text_of(client, precision="80.5"), "trust")
    assert '80.50 %</th> <td class="n">70.0 %</td><td class="n wide-only">87.5 %</td><td class="n">0.0 %' in asked
    for odd in ("", "nan", "1e3", "-5", "0", "101", "x"):
        assert len(re.findall('scope="row"', section(text_of(client, precision=odd), "trust"))) == 4, odd


def test_a_corrected_model_says_what_it_was_before(client: FlaskClient, filled: SimpleNamespace) -> None:
    key = models.key("clothing", 1, "report.json")
    report = filled.storage.read_json(key)
    report["calibration"] |= {"temperature": 1.5, "why": "", "before": {"bins": [], "error": 0.25}}
    filled.storage.write(key, json.dumps(report).encode())
    assert "by a temperature of 1.50, it was 25.0 %" in section(text_of(client), "trust")
    report["calibration"] |= {"temperature": 1.0, "why": "There are <few> images."}
    filled.storage.write(key, json.dumps(report).encode())
    raw = client.get(PAGE).text
    assert "There are &lt;few&gt; images." in raw
    assert "by a temperature" not in raw


def test_each_class_shows_its_best_and_worst(client: FlaskClient, filled: SimpleNamespace) -> None:
    shas = [row["sha256"] for row in filled.rows]
    found = section(text_of(client), "classes").split("<h3>")[1:]
    assert [re.match(r"(.*?) <span", each)[1] for each in found] == CLASSES  # type: ignore[index]
    hat = [pictures(side) for side in found[0].split("Highest loss")]
    assert hat == [[shas[6], shas[4]], [shas[0], shas[2]]]
    other = [pictures(side) for side in found[1].split("Highest loss")]
    assert (other[0][0], other[1][0]) == (shas[7], shas[1])


def test_classes_come_in_pages(client: FlaskClient, filled: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "CLASSES", 1)
    first, second = (section(text_of(client, classes=n), "classes") for n in (1, 2))
    assert (first.count("<h3>"), "hat <span" in first, "Page 1 of 2" in first) == (1, True, True)
    assert (second.count("<h3>"), "hat <span" in second) == (1, False)
    assert 'id="classes"' not in text_of(client, classes=3)


def test_every_cell_leads_to_its_images_a_page_of_them(
    client: FlaskClient,
    filled: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shas = [row["sha256"] for row in filled.rows]
    monkeypatch.setattr(reports, "PAGE", 3)
    cells = re.findall(r'<td class="(?:right-one|wrong)[^>]*><a href="([^"]*)#images"', client.get(PAGE).text)
    assert html.unescape(cells[0]) == f"{PAGE}?actual=hat&predicted=hat"
    assert len(cells) == 3
    right = section(text_of(client, actual="hat", predicted="hat"), "images")
    assert 'hat, rightly <span class="quiet">4 images' in right
    assert pictures(right) == [shas[0], shas[2], shas[4]]  # the least sure first
    assert pictures(section(text_of(client, actual="hat", predicted="hat", page=2), "images")) == [shas[6]]
    assert "There is no page 9" in text_of(client, actual="hat", predicted="hat", page=9)
    mistakes = section(text_of(client, actual=HOSTILE, predicted="hat"), "images")
    assert pictures(mistakes) == [shas[1]] == pictures(section(text_of(client, actual=HOSTILE), "images"))
    assert "There is no such image." in text_of(client, actual="hat", predicted=HOSTILE)


def test_an_older_model_keeps_what_it_has(client: FlaskClient, older: SimpleNamespace) -> None:
    text = text_of(client)
    assert re.findall(r'scope="row">([\d.]+) %', section(text, "trust")) == ["95"]
    assert "81.2 %" in section(text, "trust")
    assert 'id="classes"' not in text
    assert pictures(section(text_of(client, actual=HOSTILE, predicted="hat"), "images")) == [older.rows[1]["sha256"]]
    assert "There is no such image." in text_of(client, actual="hat", predicted=HOSTILE)
    assert "Where it looks" in text_of(client, f"{PAGE}/images/{older.rows[0]['sha256']}")


def test_an_image_has_a_page_that_says_what_the_model_said(client: FlaskClient, filled: SimpleNamespace) -> None:
    page = f"{PAGE}/images/{filled.rows[1]['sha256']}"
    text = text_of(client, page)
    assert "taken for hat" in text
    assert "It says hat with 72.5 %; its loss is 0.32." in text
    assert HOSTILE not in client.get(page).text
    assert client.get(f"{PAGE}/images/{'0' * 64}").status_code == 404


def test_where_it_looks_is_a_sentence_without_a_worker(client: FlaskClient, filled: SimpleNamespace) -> None:
    page = f"{PAGE}/images/{filled.rows[1]['sha256']}"
    assert "No worker answers single images" in client.get(f"{page}/heat").text
    assert "No worker answers single images" in client.get(page, query_string={"look": "yes"}).text
    assert "has no class" in client.get(f"{page}/heat", query_string={"class": "shoe"}).text
    filled.storage.delete(image_key(filled.rows[1]["sha256"], "jpg"))
    assert 'role="alert"' in client.get(f"{page}/heat").text
    answer = post(client, PAGE, f"{PAGE}/try", image=(io.BytesIO(picture(9)), "a.jpg"), look="yes")
    assert answer.status_code == 503


# -- the API ----------------------------------------------------------------------------------------------------------

API = "/api/v1/models/clothing/versions/1"


def test_the_api_tells_what_was_said_of_each_image(client: FlaskClient, filled: SimpleNamespace) -> None:
    shas = [row["sha256"] for row in filled.rows]
    found = client.get(f"{API}/validation?limit=3").json
    assert (found["total"], found["next"], [row["sha256"] for row in found["rows"]]) == (8, 3, [shas[0], shas[1], shas[2]])
    assert found["rows"][1] == {"sha256": shas[1], "ext": "jpg", "actual": HOSTILE, "predicted": "hat", "probability": 0.725, "loss": pytest.approx(0.3216, abs=1e-4)}  # fmt: skip
    assert client.get(f"{API}/validation?start=6").json["next"] is None
    cell = client.get(f"{API}/validation", query_string={"actual": HOSTILE, "predicted": HOSTILE, "order": "probability"}).json
    assert [row["sha256"] for row in cell["rows"]] == [shas[3], shas[5], shas[7]]
    assert client.get(f"{API}/validation?order=x").status_code == 422
    assert client.get(f"{API}/validation?limit=0").status_code == 422
    assert client.get("/api/v1/models/clothing/versions/9/validation").status_code == 404


def test_the_api_tells_the_threshold_for_any_precision(client: FlaskClient, filled: SimpleNamespace) -> None:
    assert client.get(f"{API}/threshold").json == {"wanted": 0.95, "threshold": {"probability": 0.75, "precision": 1.0, "review": 0.25}}
    assert client.get(f"{API}/threshold?precision=0.8").json["threshold"]["review"] == 0
    assert client.get(f"{API}/threshold?precision=2").status_code == 422


def test_no_probability_will_do_where_the_surest_is_wrong(client: FlaskClient, filled: SimpleNamespace) -> None:
    row = {"sha256": filled.rows[0]["sha256"], "ext": "jpg", "actual": "hat", "predicted": HOSTILE, "probability": 0.9, "loss": 3.0}
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row]), out)
    filled.storage.write(models.key("clothing", 1, "validation.parquet"), out.getvalue())
    assert client.get(f"{API}/threshold").json == {"wanted": 0.95, "threshold": None}
    assert section(text_of(client), "trust").count("every image needs a look") == 4


def test_an_older_model_says_that_predictions_were_not_kept(client: FlaskClient, older: SimpleNamespace) -> None:
    for what in ("validation", "threshold"):
        answer = client.get(f"{API}/{what}")
        assert (answer.status_code, "before predictions were kept" in answer.json["detail"]) == (404, True)


def test_looking_is_refused_before_a_worker_is_asked(client: FlaskClient, filled: SimpleNamespace) -> None:
    image = {"data": picture(9), "content_type": "image/jpeg"}
    assert client.post(f"{API}/look?class=shoe", **image).json["field"] == "class"
    assert client.post(f"{API}/look", **image).status_code == 503
    assert client.post(f"{API}/look", data=b"", content_type="image/jpeg").status_code == 422
    assert client.post("/api/v1/models/clothing/versions/9/look", **image).status_code == 404
