"""The page of `rmat demo` in Gradio: molecules that are drawn, pasted or uploaded."""

import html
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from rmat_hf.errors import UserError
from rmat_hf.inference.explanation import explain
from rmat_hf.inference.pictures import draw_contributions
from rmat_hf.inference.prediction import predict
from rmat_hf.inference.screening import PredictionArguments, run_prediction
from rmat_hf.loading import load_predictor
from rmat_hf.model.processing_rmat import RMatProcessor

EXAMPLES = ["CC(=O)Oc1ccccc1C(=O)O", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "CCO"]
MAX_SHOWN = 100
# OpenChemLib's editor (BSD), one file of 1.1 MB: without a network there is no drawing, and the
# text says so. The hash is that of the file of this version.
_EDITOR = "https://cdn.jsdelivr.net/npm/openchemlib@9.25.0/dist/openchemlib.js"
_EDITOR_HASH = "sha384-sGouhd02tKlkzpDaRR2zSZJL0/WOkTxVqxXqh+6gCnRrwQsYj0dmUtHto/MB4/vd"
_SKETCH = '<div class="sketch" style="height: 340px">The drawing tool cannot be loaded.</div>'
_LOAD_EDITOR = f"""
fetch("{_EDITOR}", {{integrity: "{_EDITOR_HASH}"}})
  .then((answer) => answer.blob())
  .then((code) => import(URL.createObjectURL(new Blob([code], {{type: "text/javascript"}}))))
  .then((library) => {{
    const place = element.querySelector(".sketch");
    place.textContent = "";
    window.sketch = new library.CanvasEditor(place);
  }});
"""
_READ_EDITOR = "() => window.sketch ? window.sketch.getMolecule().toIsomericSmiles() : ''"


def build_page(model: str | Path, *, title: str = "Predict molecules") -> gr.Blocks:
    """Return the page of a model."""
    predictor, processor = load_predictor(model)

    def show(smiles: str) -> tuple[str, str, str]:
        smiles = smiles.strip()
        if not smiles:
            return "", "", "Draw or paste a molecule."
        columns: Any = predict(predictor, pd.DataFrame({"smiles": [smiles]}), processor=processor)
        row = columns.iloc[0].drop("smiles")
        error = row.pop("error")
        if isinstance(error, str) and error:
            return "", "", f"**No prediction.** {html.escape(error)}"
        picture = draw_molecule(predictor, smiles, processor=processor)
        return picture, build_table(row.to_frame("value"), index=True), ""

    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {html.escape(title)}")
        with gr.Tab("A molecule"), gr.Row():
            with gr.Column():
                gr.HTML(_SKETCH, js_on_load=_LOAD_EDITOR)
                take = gr.Button("Take the drawing")
                smiles = gr.Textbox(label="SMILES", elem_id="smiles")
                button = gr.Button("Predict", variant="primary", elem_id="predict")
                gr.Examples(EXAMPLES, inputs=smiles)
            with gr.Column():
                message = gr.Markdown(elem_id="message")
                values = gr.HTML(elem_id="values")
                picture = gr.HTML(elem_id="picture")
        with gr.Tab("A file"):
            gr.Markdown(f"CSV, SMI, SDF or Parquet. The first {MAX_SHOWN} rows are shown.")
            column = gr.Textbox(label="Column with the SMILES", value="smiles")
            upload = gr.File(label="Table", elem_id="upload", type="filepath")
            download = gr.File(label="All rows", interactive=False, elem_id="download")
            table = gr.HTML(elem_id="table", max_height=480)
        shown = [picture, values, message]
        take.click(None, None, smiles, js=_READ_EDITOR).then(show, smiles, shown)
        button.click(show, smiles, shown)
        smiles.submit(show, smiles, shown)
        upload.upload(
            lambda path, name: predict_file(model, path, smiles_column=name),
            [upload, column],
            [table, download],
        )
    return page


def launch_page(page: gr.Blocks, **options: Any) -> None:
    """Serve a page, with fonts of the reader's machine."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    page.launch(theme=theme, footer_links=[], **options)


def predict_file(model: str | Path, path: str, *, smiles_column: str) -> tuple[str, str]:
    """Return the first rows of a table with their predictions, and the file with all of them."""
    output = Path(tempfile.mkdtemp()) / f"{Path(path).stem}_predicted.csv"
    try:
        run_prediction(
            PredictionArguments(
                model=str(model), input=path, output=str(output), smiles_column=smiles_column
            )
        )
    except UserError as error:
        raise gr.Error(str(error)) from error
    return build_table(pd.read_csv(output, nrows=MAX_SHOWN)), str(output)


def build_table(table: pd.DataFrame, *, index: bool = False) -> str:
    """Return a table for the page; what the cells of strangers say is text."""
    return str(table.to_html(index=index, border=0, float_format="{:.3f}".format, na_rep=""))


def draw_molecule(model: Any, smiles: str, *, processor: RMatProcessor) -> str:
    """Return the drawing of a molecule for the page, with what its atoms contribute.

    Of several labels that is the first one; of the classes of a label the last one.
    """
    name = model.config.output_names[-1 if model.config.label_name else 0]
    try:
        found = explain(model, [smiles], label=name, by=("atom",), processor=processor)
    except UserError:  # of a model of atoms, which predicts them
        found = None
    if found is None or found[0] is None:
        return ""
    picture = draw_contributions(found[0].mol, found[0].atoms, units=found.units, title=name)
    return f'<div class="molecule">{picture}</div>'
