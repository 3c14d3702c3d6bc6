"""The console in a real browser, against a real server with the shipped bundle.

Needs Chromium (PALISADE_CHROMIUM, else `chromium` of the path), the package playwright, and npm for axe-core, which is
fetched when the tests run. With PALISADE_SCREENSHOTS=FOLDER every view is saved there at three widths, light and dark.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway.access.keys import ApiKey, Role, hash_key, new_key, write_keys
from tests.gateway.server import ROOT, Server, start, stop, wait_until_ready

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

pytestmark = pytest.mark.e2e

SAMPLES = ROOT / "models" / "gtsrb" / "samples"
VIEWPORTS = {320: 640, 360: 800, 768: 1024, 1440: 900}
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><b>label</b>"
AXE = "axe-core@4"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        chromium = os.environ.get("PALISADE_CHROMIUM") or shutil.which("chromium")
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _serving(tmp_path_factory.mktemp("open"))


@pytest.fixture(scope="module")
def keys() -> dict[Role, str]:
    return {"client": new_key(), "reviewer": new_key()}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, keys: dict[Role, str]) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("locked")
    now = datetime.now(UTC)
    entries = [ApiKey(id=f"the-{role}", sha256=hash_key(key), role=role, created=now) for role, key in keys.items()]
    write_keys(folder / "keys.json", entries)
    yield from _serving(folder, keys_file=folder / "keys.json")


def _serving(folder: Path, **settings: Any) -> Iterator[Server]:
    started = start(ROOT / "models" / "gtsrb", folder, **settings)
    try:
        wait_until_ready(started)
        yield started
    finally:
        stop(started)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages in contexts of their own; fails the test for any script error or violation of the policy."""
    contexts, troubles = [], []

    def note(message: Any) -> None:
        # A refused request is told by the console itself, and is what some tests are about.
        if message.type == "error" and "Failed to load resource" not in message.text:
            troubles.append(message.text)

    def opened(url: str, *, width: int = 1440, **context: Any) -> Page:
        made = browser.new_context(viewport={"width": width, "height": VIEWPORTS[width]}, **context)
        contexts.append(made)
        page = made.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not troubles


def flag_something(server: Server, name: str = "attacked_0.png") -> str:
    response = server.post(content=(SAMPLES / name).read_bytes(), headers={"Content-Type": "image/png"})
    assert response.json()["verdict"]["flagged"]
    return str(response.json()["id"])


def upload(page: Page, name: str) -> None:
    page.set_input_files("#file", SAMPLES / name)
    expect(page.locator(".decision .facts")).to_contain_text(name)
    expect(page.locator(".viewer .toggles")).to_be_visible()


def rows(page: Page) -> Any:
    return page.locator(".events-table tbody tr")


def opacity_of(locator: Any) -> float:
    return float(locator.evaluate("element => getComputedStyle(element).opacity"))


def test_a_clean_upload(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(server.url)
    upload(page, "clean_0.png")
    expect(page.locator(".banner")).to_contain_text("Not flagged")
    expect(page.locator(".banner")).to_contain_text("does not prove")
    expect(page.locator("#announcer")).to_contain_text("Not flagged")


def test_a_patched_upload_shows_both_answers_and_the_evidence(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(server.url)
    upload(page, "patched_0.png")
    told = server.post(content=(SAMPLES / "patched_0.png").read_bytes(), headers={"Content-Type": "image/png"}).json()
    expect(page.locator(".banner h2")).to_have_text("Flagged as anomalous")
    expect(page.locator(".banner")).to_contain_text("not proof")
    answers = page.locator(".answers li")
    expect(answers.nth(0)).to_contain_text(told["neutralization"]["before"]["label"])
    expect(answers.nth(1)).to_contain_text(told["neutralization"]["after"]["label"])
    expect(page.locator(".answers li.served")).to_contain_text(told["prediction"]["label"])
    expect(page.locator(".evidence tbody tr")).to_have_count(len(told["verdict"]["evidence"]))
    expect(page.locator(".layers li")).to_have_count(len(told["verdict"]["layers"]))
    expect(page.locator(".layers li.above")).not_to_have_count(0)


def test_a_certificate_shows_which_masks_change_the_label(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(server.url)
    upload(page, "patched_0.png")
    expect(page.locator(".votes-map")).to_have_count(0)
    page.get_by_label("Certify against a patch").check()
    votes = page.locator(".votes-map :is(.kept, .flip)")
    expect(votes).to_have_count(16)
    flips = page.locator(".votes-list li")
    expect(flips).to_have_count(page.locator(".votes-map .flip").count())
    expect(page.locator(".certificate-level")).to_have_text("No certificate")
    page.get_by_label("Certify against a patch").uncheck()
    expect(page.locator(".votes-map")).to_have_count(0)


def test_overlays_and_their_opacity(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(server.url)
    upload(page, "patched_0.png")
    page.get_by_label("Saliency").check()
    layer = page.locator(".stage .layer", has=page.locator("canvas"))
    expect(layer).to_be_visible()
    slider = page.get_by_label("Opacity of overlays")
    slider.fill("30")
    assert opacity_of(layer) == pytest.approx(0.3)
    slider.press("ArrowRight")
    assert opacity_of(layer) == pytest.approx(0.35)
    page.get_by_label("Saliency").uncheck()
    expect(layer).to_be_hidden()


def test_samples_are_offered_and_answered(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(server.url)
    for kind in ("Clean", "Attacked", "Patched"):
        expect(page.get_by_role("heading", name=kind)).to_be_visible()
    page.locator('[data-file="attacked_0.png"]').click()
    expect(page.locator(".banner h2")).to_have_text("Flagged as anomalous")
    page.get_by_text("The same request with curl").click()
    shown = page.locator(".disclosure pre").first
    expect(shown).to_be_visible()  # until then there is no text to read
    command = shown.inner_text()
    assert command.startswith("curl -s")
    answer = subprocess.run(["bash", "-c", command], capture_output=True, check=True, timeout=30)
    assert json.loads(answer.stdout)["verdict"]["flagged"]


def test_dropping_and_pasting(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(server.url)
    expect(page.locator(".drop")).to_be_visible()
    data = list((SAMPLES / "clean_1.png").read_bytes())
    script = """([type, name, bytes]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
      const event = type === "drop" ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
                                    : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true });
      document.body.dispatchEvent(event);
    }"""
    for kind in ("drop", "paste"):
        page.evaluate(script, [kind, f"{kind}ped.png", data])
        expect(page.locator(".decision .facts")).to_contain_text(f"{kind}ped.png")


def test_what_is_no_image_is_an_error_that_can_be_read(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(server.url)
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no image"})
    expect(page.locator(".notice.failure")).to_contain_text("not PNG")
    upload(page, "clean_0.png")


def test_the_list_updates_live(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(f"{server.url}/#/events")
    expect(page.locator(".live-state")).to_have_text("Live")
    identifier = flag_something(server)
    expect(page.locator(f'tr[data-id="{identifier}"]')).to_be_visible(timeout=10_000)
    expect(rows(page).first).to_have_attribute("data-id", identifier)


def test_the_list_is_polled_where_no_stream_can_be_had(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(server.url)
    page.route("**/v1/events/stream", lambda route: route.fulfill(status=503))
    page.goto(f"{server.url}/#/events")
    expect(page.locator(".live-state")).to_contain_text("every 5 s")
    identifier = flag_something(server)
    expect(page.locator(f'tr[data-id="{identifier}"]')).to_be_visible(timeout=15_000)


def test_a_review_persists(open_page: Callable[..., Page], server: Server) -> None:
    identifier = flag_something(server)
    page = open_page(f"{server.url}/#/events?id={identifier}")
    page.get_by_label("Note").fill(HOSTILE)
    page.get_by_role("button", name="Confirm attack").click()
    row = page.locator(f'tr[data-id="{identifier}"]')
    expect(row).to_contain_text("confirmed attack")
    expect(page.locator("#announcer")).to_contain_text("Saved")
    stored = httpx.get(f"{server.url}/v1/events/{identifier}").json()
    assert (stored["review"], stored["note"]) == ("confirmed", HOSTILE)
    page.reload()
    expect(page.get_by_role("button", name="Confirm attack")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_label("Note")).to_have_value(HOSTILE)
    page.goto(f"{server.url}/#/events?review=confirmed")
    expect(row).to_be_visible()


def test_a_review_that_fails_is_taken_back(open_page: Callable[..., Page], server: Server) -> None:
    identifier = flag_something(server)
    page = open_page(f"{server.url}/#/events?id={identifier}")
    refuse = lambda route: route.fulfill(status=503) if route.request.method == "PATCH" else route.continue_()  # noqa: E731
    page.route(f"**/v1/events/{identifier}", refuse)
    page.get_by_role("button", name="False positive").click()
    expect(page.locator(".detail .failure")).to_contain_text("not saved")
    expect(page.locator(f'tr[data-id="{identifier}"]')).to_contain_text("unreviewed")
    page.unroute(f"**/v1/events/{identifier}")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(f'tr[data-id="{identifier}"]')).to_contain_text("false positive")


def test_reviewing_by_keyboard(open_page: Callable[..., Page], server: Server) -> None:
    older, newer = flag_something(server), flag_something(server)
    page = open_page(f"{server.url}/#/events")
    expect(page.locator(f'tr[data-id="{newer}"]')).to_be_visible(timeout=10_000)
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(page.locator("tr[aria-current]")).to_have_attribute("data-id", older)
    page.keyboard.press("k")
    expect(page.locator("tr[aria-current]")).to_have_attribute("data-id", newer)
    page.keyboard.press("f")
    expect(page.locator(f'tr[data-id="{newer}"]')).to_contain_text("false positive")
    page.keyboard.press("f")
    expect(page.locator(f'tr[data-id="{newer}"]')).to_contain_text("unreviewed")
    page.keyboard.press("Escape")
    expect(page.locator("tr[aria-current]")).to_have_count(0)


def test_labels_are_text_whatever_they_contain(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(server.url)

    def poison(route: Route) -> None:
        answer = route.fetch().json()
        for part in (answer["prediction"], answer["neutralization"]["before"], answer["explanation"]["companion"]):
            part["label"] = HOSTILE
        answer["verdict"]["evidence"][0]["name"] = answer["verdict"]["layers"][0]["name"] = HOSTILE
        route.fulfill(json=answer)

    page.route("**/v1/predict*", poison)
    page.set_input_files("#file", SAMPLES / "patched_0.png")
    expect(page.locator(".answers li").first).to_contain_text("<b>label</b>")
    assert page.locator("img[src=x]").count() == 0
    assert page.title() != "owned"


def test_log_in_with_a_key(open_page: Callable[..., Page], locked: Server, keys: dict[Role, str]) -> None:
    page = open_page(f"{locked.url}/#/events")
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    page.get_by_label("API key").fill("pal_wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.locator(".notice.failure")).to_contain_text("not known")
    page.get_by_label("API key").fill(keys["reviewer"])
    page.get_by_role("button", name="Log in").click()
    expect(page.locator(".live-state")).to_have_text("Live")
    page.get_by_role("link", name="Inspect", exact=True).click()
    upload(page, "attacked_0.png")
    page.get_by_role("link", name="Review it").click()
    page.get_by_role("button", name="Confirm attack").click()
    expect(page.locator(".review-state")).to_contain_text("by the-reviewer")
    page.get_by_role("link", name="Session: the-reviewer").click()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    page.reload()
    expect(page.get_by_label("API key")).to_be_visible()


def test_a_client_sees_predictions_alone(open_page: Callable[..., Page], locked: Server, keys: dict[Role, str]) -> None:
    page = open_page(locked.url)
    page.get_by_label("API key").fill(keys["client"])
    page.get_by_role("button", name="Log in").click()
    upload(page, "attacked_0.png")
    expect(page.locator(".banner h2")).to_have_text("Flagged as anomalous")
    expect(page.locator(".evidence")).to_have_count(0)
    expect(page.get_by_role("link", name="Flagged inputs")).to_have_count(0)
    page.goto(f"{locked.url}/#/events")
    expect(page.locator(".list-foot")).to_contain_text("Not for this key")
    page.goto(f"{locked.url}/#/model")
    expect(page.locator(".model")).to_be_visible()


QUESTIONS = [
    "What does it cost a benign user?",
    "Which attacks are seen?",
    "What does an attacker who knows reach?",
    "What was measured how?",
]
INKED = """(canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, Math.min(canvas.height, 120));
  return data.some((value) => value > 0);
}"""
CARD = json.loads((SAMPLES.parent / "card.json").read_text())


def charts(page: Page) -> Any:
    return page.locator(".chart canvas")


def until(page: Page, script: str, argument: object = None) -> None:
    """Wait until `script` is true; `wait_for_function` calls eval in the page, which its policy forbids."""
    for _ in range(100):
        if page.evaluate(script, argument):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"still not true: {script}")


def expect_drawn(page: Page) -> None:
    expect(charts(page)).not_to_have_count(0)
    until(page, f"() => [...document.querySelectorAll('.chart canvas')].every({INKED})")


def model_of(server: Server) -> dict[str, Any]:
    return dict(httpx.get(f"{server.url}/v1/models/gtsrb").json())


def answer_with_card(page: Page, server: Server, card: object) -> None:
    """The page's requests for the model are answered with another card."""
    body = {**model_of(server), "card": card}
    page.route("**/v1/models/gtsrb", lambda route: route.fulfill(json=body))


def share(value: float) -> str:
    return f"{100 * value:.1f}%"


def test_the_model_page_answers_questions(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(f"{server.url}/#/model")
    expect(page.locator(".question h2")).to_have_text([*QUESTIONS, "What is served?"])
    alpha = model_of(server)["alpha"]
    worst = max(
        CARD["adaptive"]["eps_8"][f"alpha_{alpha}"],
        CARD["adaptive"]["eps_8"][f"cascade_{alpha}"],
        CARD["patch_adaptive"][f"alpha_{alpha}"],
    )
    expected = {
        "Right answers on benign images": CARD["benign"]["accuracy_served"],
        "Benign images flagged": CARD["benign"]["flagged"][str(alpha)],
        "Attacks that are seen": CARD["unaware"]["pgd_8"][f"alpha_{alpha}"]["flagged"],
        "Patches answered rightly after neutralisation": CARD["patches"]["patch"]["recovered"],
        "At worst: wrong and not flagged": worst,
    }
    expect(page.locator(".in-plain-words h3")).to_have_text([part["title"] for part in CARD["plain"]])
    expect(page.locator(".in-plain-words li")).to_have_count(sum(len(part["sentences"]) for part in CARD["plain"]))
    figures = page.locator(".headline .figure")
    expect(figures.locator("h3")).to_have_text(list(expected))
    expect(figures.locator(".value")).to_have_text([share(value) for value in expected.values()])
    expect(figures.locator(".hint")).to_have_text([re.compile(r"n.=.[\d,]+, seed.0, \d+ \w+ \d{4}")] * 5)
    assert all(text.endswith(".") for text in figures.locator(".sentence").all_inner_texts())


def test_charts_have_text_alternatives_and_their_values(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(f"{server.url}/#/model")
    expect_drawn(page)
    expected: tuple[list[str], ...] = (["Bar"], ["Bar", "Bar"], ["Line", "Bar"], ["Bar"], [])
    for question, kinds in zip(page.locator(".question").all(), expected, strict=True):
        labels = [canvas.get_attribute("aria-label") for canvas in question.locator("canvas[role=img]").all()]
        assert [str(label).split(" chart: ")[0] for label in labels] == kinds
        assert question.locator("canvas").count() == len(labels)
        assert all(re.search(r"from \d.*\(.+\) to \d", str(label)) for label in labels)
    chart = page.locator(".chart", has=page.locator("h3", has_text="Attacks that are flagged"))
    table = chart.locator("table")
    expect(table).to_be_hidden()
    chart.locator("summary").click()
    expect(table).to_be_visible()
    expect(table.locator("tbody tr")).to_have_count(len(CARD["unaware"]))
    attack = list(CARD["unaware"]).index("pgd_4")
    flagged = CARD["unaware"]["pgd_4"]["alpha_0.01"]["flagged"]
    expect(table.locator("tbody tr").nth(attack)).to_contain_text(share(flagged))


def test_tables_are_folded_and_open_by_keyboard(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(f"{server.url}/#/model")
    expect(page.locator(".model table").first).to_be_attached()
    assert page.locator(".model table").evaluate_all("all => all.every((table) => table.closest('details'))")
    expect(page.locator(".model details[open]")).to_have_count(0)
    summary = page.locator(".model summary", has_text="Bounds")
    summary.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("table", name="Bounds")).to_be_visible()
    expect(page.get_by_role("table", name="Bounds").locator("tbody tr")).to_have_count(len(CARD["settings"]["bounds"]))
    page.keyboard.press("Enter")
    expect(page.get_by_role("table", name="Bounds")).to_be_hidden()


def test_titles_and_questions_are_the_cards(open_page: Callable[..., Page], server: Server) -> None:
    sections = {
        "harm": {"title": HOSTILE, "text": HOSTILE, "question": "knows"},
        "queries": {"title": "Many questions", "text": "Over HTTP.", "question": "seen"},
        "benign": {"title": "Nobody attacks", "text": "At all.", "question": "constructor"},
    }
    titles = {"attacks": {"pgd_8": HOSTILE}, "shifts": {"none": "As it came"}, "sections": sections}
    page = open_page(server.url)
    answer_with_card(page, server, {**CARD, "titles": titles})
    page.goto(f"{server.url}/#/model")
    for question, title in (("knows", HOSTILE), ("seen", "Many questions"), ("measured", "Nobody attacks")):
        expect(page.locator(f"[data-question={question}] > .tables > details > summary", has_text=title)).to_have_count(
            1
        )
    # What the card has no title for is named by its key, and is about how something was measured.
    expect(page.locator("[data-question=measured] summary", has_text="Worst classes")).to_have_count(1)
    expect(page.locator(".headline .figure").nth(2)).to_contain_text(HOSTILE)
    expect(page.locator("[data-question=benign] table th", has_text="As it came")).to_have_count(1)
    assert page.locator("img[src=x]").count() == 0
    assert page.title() != "owned"


@pytest.mark.parametrize(
    "card",
    [
        {},
        {"titles": "none", "benign": None, "shifts": [], "unaware": "x", "systems": 1, "settings": [], "units": {}},
        {
            "titles": {"sections": [], "attacks": {"pgd_8": 8}},
            "benign": {"flagged": 3, "accuracy_served": "high"},
            "plain": [1],
        },
        {"adaptive": {"eps_8": None}, "patches": {"patch": []}, "curve": {"answering": {"a": 1}}, "checks": [None, 1]},
        {"benign": {"flagged": {"0.5": 0.1}}, "layers": {"answering": {"rows": [1, {}]}}, "date": [], "reduced": {}},
        {"systems": {"eps_8": {"answering": 3, "all": {"fpr_x": 1}}}, "unaware": {"pgd_8": {"alpha_0.01": 1}}},
    ],
    ids=range(6),
)
def test_what_a_card_lacks_is_not_measured(open_page: Callable[..., Page], server: Server, card: object) -> None:
    page = open_page(server.url)
    answer_with_card(page, server, card)
    page.goto(f"{server.url}/#/model")
    expect(page.locator(".question h2")).to_have_text([*QUESTIONS, "What is served?"])
    expect(page.locator(".headline .value")).to_have_text(["not measured"] * 5)


def test_a_model_without_a_card(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(server.url)
    answer_with_card(page, server, None)
    page.goto(f"{server.url}/#/model")
    expect(page.locator(".model .empty")).to_contain_text("nothing is known of its robustness")
    expect(page.locator(".question h2")).to_have_text(["What is served?"])


def test_the_report_opens_as_a_page_of_its_own(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(f"{server.url}/#/model")
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Full report").click()
    expect(opened.value.locator("h1")).to_contain_text("gtsrb")
    # Of an origin of its own: the console's storage is not for it.
    assert opened.value.evaluate("window.origin") == "null"
    assert opened.value.locator("img").first.evaluate("image => image.naturalWidth") > 0


def test_charts_follow_the_theme(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(f"{server.url}/#/model", color_scheme="light")
    expect_drawn(page)
    light = charts(page).first.evaluate("canvas => canvas.toDataURL()")
    page.emulate_media(color_scheme="dark")
    different = "light => document.querySelector('.chart canvas').toDataURL() !== light"
    until(page, different, light)
    page.emulate_media(color_scheme="light")
    until(page, different.replace("!==", "==="), light)


def _show_inspect(page: Page) -> None:
    page.locator('[data-file="patched_0.png"]').click()
    expect(page.locator(".viewer .toggles")).to_be_visible()


def _show_events(page: Page) -> None:
    expect(rows(page)).not_to_have_count(0)


def _show_event(page: Page) -> None:
    rows(page).first.get_by_role("button").click()
    expect(page.locator(".detail .toggles")).to_be_visible()


def _show_model(page: Page) -> None:
    expect(page.locator(".headline .figure")).to_have_count(5)
    expect_drawn(page)
    # Every table that is folded is looked at, too.
    page.evaluate("document.querySelectorAll('.model details').forEach((details) => (details.open = true))")


VIEWS: dict[str, tuple[str, Callable[[Page], None]]] = {
    "inspect": ("#/inspect", _show_inspect),
    "events": ("#/events", _show_events),
    "event": ("#/events", _show_event),
    "campaigns": ("#/campaigns", lambda page: expect(page.locator("main h1")).to_be_visible()),
    "model": ("#/model", _show_model),
    "session": ("#/session", lambda page: expect(page.locator(".session h1")).to_be_visible()),
}


_BEYOND = """() => {
    const width = document.documentElement.clientWidth;
    const clipped = (e) => e && (getComputedStyle(e).overflowX !== "visible" || clipped(e.parentElement));
    return [...document.querySelectorAll("body *")]
        .filter((e) => e.getBoundingClientRect().left + e.scrollWidth > width && !clipped(e))
        .map((e) => `${e.tagName}.${e.className}: ${e.textContent.slice(0, 40)}`);
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", VIEWPORTS)
def test_every_view_fits(open_page: Callable[..., Page], server: Server, width: int, theme: str) -> None:
    flag_something(server, "patched_0.png")
    folder = os.environ.get("PALISADE_SCREENSHOTS")
    for name, (path, show) in VIEWS.items():
        page = open_page(f"{server.url}/{path}", width=width, color_scheme=theme)
        show(page)
        beyond = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert beyond <= 0, f"{name} scrolls sideways by {beyond} pixels: {page.evaluate(_BEYOND)}"
        if folder:
            page.screenshot(path=Path(folder) / f"{name}-{width}-{theme}.png", full_page=True)


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("axe")
    packed = subprocess.run(["npm", "pack", "--silent", AXE], cwd=folder, check=True, capture_output=True, text=True)
    with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
        source = archive.extractfile("package/axe.min.js")
        assert source is not None
        return source.read().decode()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_axe_finds_nothing_serious(
    open_page: Callable[..., Page], server: Server, axe: str, width: int, theme: str
) -> None:
    flag_something(server, "patched_0.png")
    for name, (path, show) in VIEWS.items():
        # axe-core is not ours to admit: the page's policy is off while it looks.
        page = open_page(f"{server.url}/{path}", width=width, color_scheme=theme, bypass_csp=True)
        show(page)
        page.evaluate(axe)
        found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
        serious = {
            violation["id"]: [node["html"][:160] for node in violation["nodes"]]
            for violation in found
            if violation["impact"] in {"serious", "critical"}
        }
        assert not serious, f"{name}: {json.dumps(serious, indent=1)}"


def test_a_chosen_theme_lasts(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(server.url, color_scheme="light")
    ground = lambda: page.evaluate("getComputedStyle(document.documentElement).backgroundColor")  # noqa: E731
    light = ground()
    button = page.get_by_role("button", name=re.compile("^Theme"))
    button.click()
    button.click()
    expect(button).to_have_attribute("aria-label", re.compile("dark"))
    dark = ground()
    assert dark != light
    page.reload()
    assert ground() == dark


def test_an_input_that_left_the_list_can_be_reviewed(open_page: Callable[..., Page], server: Server) -> None:
    identifier = flag_something(server)
    page = open_page(f"{server.url}/#/events?id={identifier}")
    expect(page.locator(".detail .toggles")).to_be_visible()
    page.locator("select[name=kind]").select_option("sample")
    expect(page.locator(f'tr[data-id="{identifier}"]')).to_have_count(0)
    page.get_by_role("button", name="Confirm attack").click()
    expect(page.locator("#announcer")).to_contain_text("Saved")
    expect(page.get_by_role("button", name="Confirm attack")).to_have_attribute("aria-pressed", "true")
    assert httpx.get(f"{server.url}/v1/events/{identifier}").json()["review"] == "confirmed"
    expect(page.locator(f'tr[data-id="{identifier}"]')).to_have_count(0)


def test_an_input_that_the_screen_let_through(open_page: Callable[..., Page], server: Server) -> None:
    identifier = flag_something(server)
    page = open_page(f"{server.url}/#/events?id={identifier}")
    expect(page.locator(".detail .p-scale")).to_be_visible()
    event = httpx.get(f"{server.url}/v1/events/{identifier}").json()
    event |= {"kind": "sample", "stage": "screen", "flagged": False, "p_value": None, "after": None}
    event |= {"neutralization": None, "evidence": {}, "layers": {}, "anomaly": None, "sampled": True}
    page.route(f"**/v1/events/{identifier}", lambda route: route.fulfill(json=event))
    page.goto(f"{server.url}/#/events?kind=sample&id={identifier}")
    page.reload()
    banner = page.locator(".detail .banner")
    expect(banner).to_contain_text("The screen found it plainly benign")
    expect(banner).not_to_contain_text("%")
    expect(page.locator(".detail .p-scale")).to_have_count(0)


def case_file(identifier: str, pattern: str) -> dict[str, Any]:
    step: dict[str, Any] = {"number": 1, "request": f"r-{identifier}", "time": "2026-11-29T10:00:00Z", "label": HOSTILE}
    step |= {"p_value": 0.5, "flagged": False}
    case: dict[str, Any] = {"id": identifier, "pattern": pattern, "resembles": None, "model": "gtsrb", "queries": 40}
    case |= {"first_seen": "2026-11-29T10:00:00Z", "last_seen": "2026-11-29T11:00:00Z", "different": 40, "flagged": 3}
    case |= {"label_flips": 2, "lowest_p_value": 0.001, "keys": {HOSTILE: 40}, "labels": {HOSTILE: 40}, "step": None}
    case |= {"dimension": None, "known_after": None, "path": [step], "last_request": step["request"]}
    return case | {"pictured": [step["request"]]}


def test_campaigns_of_the_chosen_pattern_alone(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(f"{server.url}/#/campaigns")
    expect(page.locator(".list-foot")).to_contain_text("Nothing here")
    held: dict[str, Route] = {}
    page.route("**/v1/campaigns?*", lambda route: held.update({route.request.url.split("pattern=")[1][:5]: route}))
    for pattern in ("video", "retries"):
        page.get_by_label("Which groups").select_option(pattern)
        page.wait_for_timeout(200)
    for name, pattern in (("retri", "retries"), ("video", "video")):
        with contextlib.suppress(sync_api.Error):
            held[name].fulfill(json={"campaigns": [case_file(f"c-{pattern}", pattern)], "next": None})
        page.wait_for_timeout(200)
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("Retries")


def test_the_case_file_that_was_opened_last_is_shown(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page("about:blank")
    cases = {name: case_file(name, name) for name in ("video", "retries")}
    page.route("**/v1/campaigns?*", lambda route: route.fulfill(json={"campaigns": list(cases.values()), "next": None}))
    held: dict[str, Route] = {}
    page.route("**/v1/campaigns/*", lambda route: held.update({route.request.url.rpartition("/")[2]: route}))
    page.goto(f"{server.url}/#/campaigns")
    for name in ("Video", "Retries"):
        page.get_by_role("button", name=f"Open {name}").click()
        page.wait_for_timeout(200)
    for name in ("retries", "video"):
        with contextlib.suppress(sync_api.Error):
            held[name].fulfill(json=cases[name])
        page.wait_for_timeout(200)
    expect(page.locator(".detail h2")).to_have_text("Retries")
    expect(page.locator(".detail li a")).to_have_accessible_name(re.compile("query 1"))


def hold(page: Page, address: str) -> list[Route]:
    """Requests to `address`, which wait until their routes go on."""
    held: list[Route] = []
    page.route(address, lambda route: held.append(route))  # noqa: PLW0108  # Playwright sets an attribute on it
    return held


def two_models(page: Page, server: Server) -> None:
    """The page is told of a second model, which has the samples of the first."""
    models = httpx.get(f"{server.url}/v1/models").json()["models"]
    other = {**models[0], "name": "other", "default": False}
    page.route("**/v1/models", lambda route: route.fulfill(json={"models": [*models, other]}))
    samples = httpx.get(f"{server.url}/v1/models/gtsrb/samples").json()
    page.route("**/v1/models/other/samples", lambda route: route.fulfill(json=samples))


def test_another_model_is_chosen_while_an_answer_is_awaited(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page("about:blank")
    two_models(page, server)
    held = hold(page, "**/v1/predict*")
    page.goto(server.url)
    page.locator('[data-file="clean_0.png"]').click()
    until(page, "() => document.querySelector('.result').getAttribute('aria-busy') === 'true'")
    choice = page.locator(".model-choice select")
    choice.focus()
    choice.select_option("other")
    expect(choice).to_be_focused()
    expect(page.locator(".result")).to_have_attribute("aria-busy", "false")
    for route in held:
        with contextlib.suppress(sync_api.Error):
            route.continue_()
    page.wait_for_timeout(1000)
    expect(page.locator(".result")).to_contain_text("Nothing inspected yet")


@pytest.mark.parametrize(
    ("status", "text"), [(429, "Too many requests"), (404, "That did not work"), (0, "No connection")]
)
def test_a_sample_that_cannot_be_had(open_page: Callable[..., Page], server: Server, status: int, text: str) -> None:
    page = open_page(server.url)
    problem = {"code": "any", "detail": "the reason"}
    refuse = lambda route: route.fulfill(status=status, json=problem) if status else route.abort()  # noqa: E731
    page.route("**/samples/attacked_0.png", refuse)
    page.locator('[data-file="attacked_0.png"]').click()
    expect(page.locator(".notice.failure")).to_contain_text(text)
    if status:
        expect(page.locator(".notice.failure")).to_contain_text("the reason")


def test_the_curl_command_for_a_sample_has_the_key(
    open_page: Callable[..., Page], locked: Server, keys: dict[Role, str]
) -> None:
    page = open_page(locked.url)
    page.get_by_label("API key").fill(keys["reviewer"])
    page.get_by_role("button", name="Log in").click()
    page.locator('[data-file="attacked_0.png"]').click()
    page.get_by_text("The same request with curl").click()
    shown = page.locator(".disclosure pre").first
    expect(shown).to_contain_text("curl")  # it is written when the disclosure has opened
    command = shown.inner_text()
    environment = {**os.environ, "PALISADE_KEY": keys["reviewer"]}
    answer = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, check=True, timeout=30)
    assert json.loads(answer.stdout)["verdict"]["flagged"]


def test_the_skip_link_stays_in_the_view(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(f"{server.url}/#/model")
    expect(page.locator(".headline .figure")).to_have_count(5)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    expect(page.locator(".headline .figure")).to_have_count(5)
    assert page.url.endswith("#/model")


def test_events_between_the_first_page_and_the_stream(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page("about:blank")
    held = hold(page, "**/v1/events/stream")
    page.goto(f"{server.url}/#/events")
    expect(page.locator(".list-foot .spinner")).to_have_count(0)
    identifier = flag_something(server)
    page.wait_for_timeout(2000)
    held[0].continue_()
    expect(page.locator(".live-state")).to_have_text("Live")
    expect(page.locator(f'tr[data-id="{identifier}"]')).to_be_visible(timeout=5000)


def test_what_policy_block_does_with_a_suspected_region(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(server.url)

    def blocking(route: Route) -> None:
        answer = route.fetch().json()
        answer["verdict"] |= {"action": "block", "flagged": False, "level": "none"}
        answer["neutralization"] |= {"served": False}
        route.fulfill(json=answer)

    page.route("**/v1/predict*", blocking)
    page.set_input_files("#file", SAMPLES / "patched_0.png")
    expect(page.locator(".findings")).to_contain_text("the policy “block” serves only first answers")


def test_the_note_of_another_reviewer_stays(open_page: Callable[..., Page], server: Server) -> None:
    identifier = flag_something(server)
    page = open_page(f"{server.url}/#/events?id={identifier}")
    expect(page.get_by_label("Note")).to_have_value("")
    address = f"{server.url}/v1/events/{identifier}"
    httpx.patch(address, json={"note": "a sticker"}).raise_for_status()
    page.get_by_role("button", name="Confirm attack").click()
    expect(page.locator("#announcer")).to_contain_text("Saved")
    expect(page.get_by_label("Note")).to_have_value("a sticker")
    page.get_by_label("Note").fill("two stickers")
    page.get_by_role("button", name="Confirm attack").click()
    expect(page.locator("#announcer")).to_contain_text("unreviewed")
    stored = httpx.get(address).json()
    assert (stored["review"], stored["note"]) == (None, "two stickers")


def test_another_tab_logs_in(open_page: Callable[..., Page], locked: Server, keys: dict[Role, str]) -> None:
    def log_in(page: Page, role: Role) -> None:
        page.get_by_label("API key").fill(keys[role])
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("link", name=f"Session: the-{role}")).to_be_visible()

    page = open_page(locked.url)
    log_in(page, "reviewer")
    other = page.context.new_page()
    for role in ("reviewer", "client"):
        page.context.clear_cookies()
        other.goto(locked.url)
        log_in(other, role)
        page.set_input_files("#file", SAMPLES / "clean_0.png")
        if role == "reviewer":
            expect(page.locator(".banner")).to_contain_text("Not flagged", timeout=15_000)
    # What the page shows is for the caller whose session it is.
    expect(page.get_by_role("link", name="Session: the-client")).to_be_visible()
    expect(page.locator(".banner")).to_have_count(0)
