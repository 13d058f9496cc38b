"""A page in the browser for a model: the files of a Gradio Space, and the page on this machine."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmat_hf import __version__
from rmat_hf.adapters import HUB_ID
from rmat_hf.errors import UserError
from rmat_hf.flags import declare_flag, declare_positional, declare_required, validate_flags
from rmat_hf.inference.sharing import stage_model
from rmat_hf.loading import find_checkpoint
from rmat_hf.output_folder import create_folder_atomically

if TYPE_CHECKING:
    import gradio

MODEL_FOLDER = "model"
# as in the extra `demo`
LOWEST_GRADIO = "6.0.0"
_APP = '''"""The page of a model, as `rmat demo` writes it."""

from pathlib import Path

from rmat_hf.inference.demo_page import build_page, launch_page

page = build_page({model}, title={title!r})

if __name__ == "__main__":
    launch_page(page)
'''
_CARD = """---
title: {title}
emoji: ⚗️
colorFrom: green
colorTo: blue
sdk: gradio
sdk_version: {gradio}
app_file: app.py
license: {license}
pinned: false
---

# {title}

Draw, paste or upload molecules; the page shows what the model predicts for them. Written by
`rmat demo`.

On a machine of your own: `pip install -r requirements.txt`, then `python app.py`. As a Space:
`hf repo create NAME --type space --space-sdk gradio`, then `hf upload NAME . --type space`.
Everybody who may see the Space can predict with the model, and download it.
"""


@dataclass(kw_only=True)
class DemoArguments:
    """Everything `write_demo` needs to know; each field is a flag of `rmat demo`."""

    folder: str = declare_positional("Folder to write: a Gradio Space.")
    model: str = declare_required(
        "Model folder written by rmat finetune, copied without its molecules, or Hub id."
    )
    title: str = declare_flag("Predict molecules", "Headline of the page.")
    share: str = declare_flag(
        "model",
        "As of rmat push. A stack or kernel head needs molecules.",
        choices=("model", "molecules"),
    )
    license: str = declare_flag("other", "License in the card, for example apache-2.0.")
    overwrite: bool = declare_flag(False, "Replace the folder if it has files.")
    launch: bool = declare_flag(False, "Open the page on this machine, until Ctrl-C.")
    port: int = declare_flag(7860, "Port of --launch.", least=1)

    def __post_init__(self) -> None:
        """Raise a `UserError` for an unknown share or a port that cannot be."""
        validate_flags(self)


def write_demo(arguments: DemoArguments) -> Path:
    """Write a Gradio Space that predicts with a model: app, requirements, card and the model.

    Molecules and labels of the training stay behind, as in [`push_folder`].

    Args:
        arguments (`DemoArguments`): Folder, model, title and how much of the model is shared.
    """
    if arguments.launch:
        _import_page()
    is_local = Path(arguments.model).is_dir() or not HUB_ID.fullmatch(arguments.model)
    words = {"title": arguments.title, "license": arguments.license}
    with create_folder_atomically(arguments.folder, overwrite=arguments.overwrite) as folder:
        if is_local:
            (folder / MODEL_FOLDER).mkdir()
            source = Path(find_checkpoint(arguments.model))
            stage_model(source, folder / MODEL_FOLDER, share=arguments.share)
        model = f"Path(__file__).with_name({MODEL_FOLDER!r})" if is_local else arguments.model
        model = model if is_local else repr(model)
        app = _APP.format(model=model, title=arguments.title)
        app = app if is_local else app.replace("from pathlib import Path\n\n", "")
        (folder / "app.py").write_text(app, encoding="utf-8")
        (folder / "requirements.txt").write_text(f"rmat-hf[demo]=={__version__}\n")
        card = _CARD.format(gradio=_find_gradio(), **words)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return Path(arguments.folder)


def launch_demo(arguments: DemoArguments) -> "gradio.Blocks":
    """Open the page of a written folder on this machine, and return it."""
    module = _import_page()
    local = Path(arguments.folder) / MODEL_FOLDER
    page = module.build_page(local if local.is_dir() else arguments.model, title=arguments.title)
    try:
        module.launch_page(page, server_port=arguments.port, prevent_thread_lock=True)
    except OSError as error:
        raise UserError(f"Port {arguments.port} is taken. Pass another --port.") from error
    return page


def _import_page() -> Any:
    try:
        from rmat_hf.inference import demo_page
    except ModuleNotFoundError as error:
        raise UserError("The page needs gradio: pip install 'rmat-hf[demo]'.") from error
    return demo_page


def _find_gradio() -> str:
    """Return the version of Gradio for the Space: the one here, else the lowest that works."""
    try:
        return version("gradio")
    except PackageNotFoundError:
        return LOWEST_GRADIO
