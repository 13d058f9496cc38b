"""`rmat demo`: the files of a Space, and the page in a browser."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from processes import build_environment
from tiny import TINY_SMILES

from rmat_hf.errors import UserError
from rmat_hf.inference.demo import DemoArguments, write_demo

PATIENCE_MS = 120_000
PORT = 7913
# where pictures of the page are kept, to be looked at
PICTURES = os.environ.get("DEMO_PICTURES")
# the file of the drawing tool, which the page takes from the network
EDITOR = os.environ.get("DEMO_EDITOR")


def test_the_folder_is_a_space_without_a_molecule_of_the_training(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    (tiny_model_folder / "predictions.csv").write_text("smiles,y\nCCO,1\n")
    arguments = DemoArguments(folder=str(tmp_path / "space"), model=str(tiny_model_folder))
    space = write_demo(arguments)
    names = {path.relative_to(space).as_posix() for path in space.rglob("*")}
    assert {"app.py", "requirements.txt", "README.md", "model/model.safetensors"} <= names
    assert not [name for name in names if name.endswith(".csv")]
    compile((space / "app.py").read_text(encoding="utf-8"), "app.py", "exec")
    card = yaml.safe_load((space / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert (card["sdk"], card["app_file"]) == ("gradio", "app.py")
    with pytest.raises(UserError, match="not empty"):
        write_demo(arguments)


def test_without_gradio_nothing_is_written_that_was_to_be_launched(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "rmat_hf.inference.demo_page", raising=False)
    arguments = {"folder": str(tmp_path / "space"), "model": str(tiny_model_folder)}
    with pytest.raises(UserError, match=r"rmat-hf\[demo\]"):
        write_demo(DemoArguments(**arguments, launch=True))
    assert not (tmp_path / "space").exists()
    assert write_demo(DemoArguments(**arguments)).is_dir()


def test_a_model_on_the_hub_is_named_and_not_copied(tmp_path: Path) -> None:
    space = write_demo(DemoArguments(folder=str(tmp_path / "space"), model="me/solubility"))
    assert {path.name for path in space.iterdir()} == {"app.py", "requirements.txt", "README.md"}
    assert "build_page('me/solubility'" in (space / "app.py").read_text(encoding="utf-8")


@contextmanager
def serve(space: Path) -> Iterator[str]:
    """Run the app of a Space as the Hub does, and yield its address."""
    variables = build_environment(space) | {"GRADIO_SERVER_PORT": str(PORT)}
    with subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=space,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if f":{PORT}" in line:
                    break
            else:
                raise AssertionError("".join(lines))
            yield f"http://127.0.0.1:{PORT}"
        finally:
            process.kill()


def picture(page: Any, name: str) -> None:
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/{name}.png", full_page=True)


@contextmanager
def open_browser(driver: Any) -> Iterator[Any]:
    chromium = shutil.which("chromium") or pytest.skip("needs Chromium")
    browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(PATIENCE_MS)
    if EDITOR:
        answer = {"path": EDITOR, "content_type": "text/javascript"}
        answer["headers"] = {"Access-Control-Allow-Origin": "*"}
        page.route("https://cdn.jsdelivr.net/**", lambda route: route.fulfill(**answer))
    yield page
    browser.close()


@pytest.mark.slow
def test_the_page_predicts_what_is_drawn_pasted_and_uploaded(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gradio", reason="make test-demo")
    playwright = pytest.importorskip("playwright.sync_api", reason="make test-demo")
    space = write_demo(DemoArguments(folder=str(tmp_path / "space"), model=str(tiny_model_folder)))
    table = tmp_path / "table.csv"
    smiles = [*TINY_SMILES * 16, "CCO", "C1CC", "CCN", "CCC"]
    pd.DataFrame({"smiles": smiles}).to_csv(table, index=False)
    with (
        serve(space) as address,
        playwright.sync_playwright() as driver,
        open_browser(driver) as page,
    ):
        page.goto(address)
        text = page.locator("#smiles textarea, #smiles input")
        text.fill("CC(=O)Oc1ccccc1C(=O)O")
        page.locator("#predict").click()
        page.locator("#values").get_by_text("prediction_LABEL_0").wait_for()
        page.locator(".molecule svg").first.wait_for()
        picture(page, "pasted")
        text.fill("C1CC")
        page.locator("#predict").click()
        page.get_by_text("unclosed ring").wait_for()
        picture(page, "bad_smiles")
        if EDITOR:
            page.wait_for_function("window.sketch")
            page.locator(".sketch").click(position={"x": 250, "y": 150})
            page.get_by_role("button", name="Take the drawing").click()
            page.locator(".molecule svg").first.wait_for()
            picture(page, "drawn")
        page.get_by_role("tab", name="A file").click()
        page.locator("#upload input[type=file]").set_input_files(str(table))
        page.locator("#table").get_by_text("prediction_LABEL_0").wait_for()
        picture(page, "file")
        with page.expect_download() as download:
            page.locator("#download a[download]").first.click()
        rows = pd.read_csv(download.value.path())
        assert rows["smiles"].tolist() == smiles
        assert rows["prediction_LABEL_0"].notna().sum() == len(smiles) - 1
