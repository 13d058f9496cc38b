"""Explanations as pictures: contributions and attention on the structure, with a legend."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDepictor, rdDistGeom
from rdkit.Geometry import Point2D

from rmat_hf.errors import UserError, import_draw
from rmat_hf.inference.explanation import Contributions

Color = tuple[float, float, float]
# Blue and orange are told apart with every common color blindness, and in gray by their signs.
LOWERS: Color = (0.25, 0.53, 0.84)
RAISES: Color = (0.95, 0.52, 0.10)
WIDTH, HEIGHT, LEGEND_HEIGHT = 420, 240, 46
# Atoms from this share of the largest contribution on have their number beside them; others have
# it where there is room.
MIN_SHARE_WITH_NUMBER = 0.35
_RADIUS = 0.42  # of the colored circle of an atom, in the unit of the drawing
_FONT_SIZE, _LETTER_WIDTH = 10, 5.8
# Between molecules of one drawing, in the same unit: more than a bond.
_GAP = 2.2
# Pairs that attention is drawn of: the strongest.
NUM_PAIRS = 12
_STEPS = 21


def choose_color(share: float) -> Color:
    """Return the color of a share, from -1 (lowers, blue) by white to 1 (raises, orange)."""
    end, strength = (RAISES if share > 0 else LOWERS), min(abs(share), 1.0)
    red, green, blue = (1 - strength * (1 - part) for part in end)
    return red, green, blue


def draw_contributions(
    mol: Chem.Mol, contributions: Contributions, *, units: str, title: str = ""
) -> str:
    """Return an SVG picture of a molecule with a contribution at each atom.

    Blue atoms lower the prediction, orange ones raise it. Atoms on which the members of an ensemble
    do not agree are pale: the color is that of the contribution less the spread. Every atom has
    its number beside it, the smaller ones where there is room.

    Args:
        contributions ([`Contributions`], each `(num_atoms,)`): Of its atoms, as
            `explanation.atoms` or `explanation.relations["distance"]`.
    """
    values, spread = contributions.values, contributions.spread
    limit = _find_limit(values)
    sure = values if spread is None else np.sign(values) * np.maximum(np.abs(values) - spread, 0)
    drawing = _prepare(mol)
    doubts = [""] * len(values) if spread is None else [f"±{it:.2g}" for it in spread.tolist()]
    numbers = [f"{it:+.2g}{doubt}" for it, doubt in zip(values.tolist(), doubts, strict=True)]
    colors = {atom: choose_color(value / limit) for atom, value in enumerate(sure.tolist())}
    canvas = _open_canvas()
    canvas.DrawMolecule(
        drawing,
        highlightAtoms=list(colors),
        highlightAtomColors=colors,
        highlightBonds=[],
        highlightAtomRadii=dict.fromkeys(colors, _RADIUS),
    )
    places = _place_numbers(canvas, drawing, numbers=numbers, shares=np.abs(values) / limit)
    legend = (f"{-limit:.2g}", f"{limit:+.2g}", f"{units}: the atom lowers | raises")
    return _frame(canvas, title=title, legend=legend, beside=_write_numbers(numbers, places))


def _place_numbers(
    canvas: Any, mol: Chem.Mol, *, numbers: Sequence[str], shares: np.ndarray
) -> dict[int, np.ndarray]:
    """Return where the number of each atom stands that has room for it, the largest first.

    A number touches no other. It stays off bonds and atoms and nearest to its own one, if it can;
    else only the large ones are there.
    """
    points = [canvas.GetDrawCoords(it) for it in range(mol.GetNumAtoms())]
    atoms = np.array([[it.x, it.y] for it in points])
    radius = np.ptp([canvas.GetDrawCoords(Point2D(it, 0.0)).x for it in (0.0, _RADIUS)])
    ends = [(it.GetBeginAtomIdx(), it.GetEndAtomIdx()) for it in mol.GetBonds()]
    steps = np.linspace(0, 1, 13)[:, None]
    on_bonds = [atoms[a] + steps * (atoms[b] - atoms[a]) for a, b in ends]
    drawn = np.concatenate([atoms, *on_bonds])
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ways = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    places: dict[int, np.ndarray] = {}
    boxes: dict[int, np.ndarray] = {}
    for atom in np.argsort(-shares, kind="stable")[: len(numbers)].tolist():
        box = np.array([_LETTER_WIDTH * len(numbers[atom]), _FONT_SIZE]) / 2
        # around the symbol too, which hydrogens and charges make larger than the circle
        own = mol.GetAtomWithIdx(atom)
        has_more = own.GetFormalCharge() or (own.GetAtomicNum() != 6 and own.GetTotalNumHs())
        tries = atoms[atom] + ways * (max(radius, 9.0) * (2.1 if has_more else 1) + box)
        is_free = (np.abs(tries - [WIDTH / 2, HEIGHT / 2]) < [WIDTH / 2, HEIGHT / 2] - box).all(1)
        for other, place in places.items():
            is_free &= (np.abs(tries - place) > box + boxes[other]).any(axis=1)
        covered = (np.abs(tries[:, None] - drawn) < box + 2).all(axis=2).sum(axis=1)
        others = np.delete(atoms, atom, axis=0)
        gaps = np.maximum(np.abs(tries[:, None] - others) - box, 0)
        nearest = np.linalg.norm(gaps, axis=2).min(axis=1, initial=WIDTH)
        covered += nearest < max(radius, 9.0)
        covered[~is_free] = len(drawn) + 1
        chosen = np.lexsort((-nearest, covered))[0]
        limit = len(drawn) if shares[atom] >= MIN_SHARE_WITH_NUMBER else 0
        if covered[chosen] <= limit:
            places[atom], boxes[atom] = tries[chosen], box
    return places


def _write_numbers(numbers: Sequence[str], places: Mapping[int, np.ndarray]) -> str:
    words = f"font-family='sans-serif' font-size='{_FONT_SIZE}' fill='#000' text-anchor='middle'"
    return "".join(
        f"<text x='{x:.1f}' y='{y + 18 + 0.35 * _FONT_SIZE:.1f}' {words}>{escape(numbers[atom])}"
        "</text>"
        for atom, (x, y) in sorted(places.items())
    )


def build_3d_view(mol: Chem.Mol, contributions: Contributions) -> Any:
    """Return a molecule to turn in a notebook, its atoms in the colors of [`draw_contributions`].

    Needs py3Dmol, the extra `notebooks`. The conformer is that of the molecule, or one of ETKDG.
    """
    try:
        import py3Dmol
    except ImportError as error:
        raise UserError("py3Dmol is not installed: pip install 'rmat-hf[notebooks]'.") from error
    shown = Chem.Mol(mol)
    if not shown.GetNumConformers():
        shown = Chem.AddHs(shown)
        if rdDistGeom.EmbedMolecule(shown, randomSeed=1):
            raise UserError("The molecule has no conformer. Use draw_contributions.")
        shown = Chem.RemoveHs(shown)
    view, limit = py3Dmol.view(width=WIDTH, height=HEIGHT), _find_limit(contributions.values)
    view.addModel(Chem.MolToMolBlock(shown), "mol")
    for atom, value in enumerate(contributions.values.tolist()):
        color = _name_color(choose_color(value / limit))
        style = {"stick": {"radius": 0.1}, "sphere": {"scale": 0.35, "color": color}}
        view.setStyle({"index": atom}, style)
    view.zoomTo()
    return view


def _find_limit(values: np.ndarray) -> float:
    return float(np.abs(values).max(initial=0)) or 1.0


def draw_pairs(mol: Chem.Mol, weights: np.ndarray, *, units: str, title: str = "") -> str:
    """Return an SVG picture of a molecule with lines between pairs of atoms, the strongest 12.

    Args:
        weights (`np.ndarray` of shape `(num_atoms, num_atoms)`): Of pairs, the mean of both
            directions is drawn: the larger, the thicker; blue if it is negative.
    """
    weights = (weights + weights.T) / 2
    firsts, seconds = np.triu_indices(len(weights), 1)
    values = weights[firsts, seconds]
    strongest = np.argsort(-np.abs(values), kind="stable")[:NUM_PAIRS]
    limit = _find_limit(values)
    drawing, canvas = _prepare(mol), _open_canvas()
    canvas.DrawMolecule(drawing)
    canvas.SetFillPolys(False)
    for pair in strongest[::-1].tolist():
        share = values[pair] / limit
        ends = [canvas.GetDrawCoords(int(it)) for it in (firsts[pair], seconds[pair])]
        canvas.SetColour(choose_color(share))
        canvas.SetLineWidth(max(1, round(6 * abs(share))))
        _draw_arc(canvas, ends)
    legend = (f"{-limit:.2g}", f"{limit:+.2g}", units)
    return _frame(canvas, title=title, legend=legend)


def _draw_arc(canvas: Any, ends: list[Point2D]) -> None:
    """Draw a flat arc, so that a line does not hide behind the bonds between its atoms."""
    start, end = ends
    across = Point2D(-(end.y - start.y), end.x - start.x)
    points = [
        Point2D(
            start.x + (end.x - start.x) * share + 0.6 * share * (1 - share) * across.x,
            start.y + (end.y - start.y) * share + 0.6 * share * (1 - share) * across.y,
        )
        for share in np.linspace(0, 1, 9).tolist()
    ]
    for first, second in pairwise(points):
        canvas.DrawLine(first, second, True)


def _prepare(mol: Chem.Mol) -> Chem.Mol:
    drawing = Chem.Mol(mol)
    drawing.RemoveAllConformers()
    rdDepictor.Compute2DCoords(drawing, canonOrient=True)
    _set_apart(drawing)
    return import_draw().rdMolDraw2D.PrepareMolForDrawing(drawing, addChiralHs=False)


def _set_apart(mol: Chem.Mol) -> None:
    """Put the molecules of a salt or mixture side by side, off each other's symbols."""
    start, conformer = 0.0, mol.GetConformer()
    fragments = Chem.GetMolFrags(mol)
    for atoms in fragments if len(fragments) > 1 else ():
        points = conformer.GetPositions()[list(atoms)]
        left, right = points.min(axis=0), points.max(axis=0)
        shift = np.array([start - left[0], -(left[1] + right[1]) / 2, 0.0])
        for atom, point in zip(atoms, (points + shift).tolist(), strict=True):
            conformer.SetAtomPosition(atom, point)
        start += right[0] - left[0] + _GAP


def _open_canvas() -> Any:
    canvas = import_draw().rdMolDraw2D.MolDraw2DSVG(WIDTH, HEIGHT)
    options: Any = canvas.drawOptions()
    options.useBWAtomPalette()
    options.fillHighlights = True
    options.clearBackground = False
    options.padding, options.fixedBondLength = 0.08, 36
    return canvas


def _frame(canvas: Any, *, title: str, legend: tuple[str, str, str], beside: str = "") -> str:
    """Return the picture with a title and the scale of colors under it."""
    canvas.FinishDrawing()
    body = canvas.GetDrawingText()
    body = body[body.index("<svg") :].replace("<svg", "<svg x='0' y='18'", 1)
    total, bar = HEIGHT + 18 + LEGEND_HEIGHT, 160
    left, top, step = (WIDTH - bar) / 2, HEIGHT + 24, bar / _STEPS
    shares = np.linspace(-1, 1, _STEPS).tolist()
    boxes = "".join(
        f"<rect x='{left + idx * step:.1f}' y='{top}' width='{step + 0.3:.1f}' height='10' "
        f"fill='{_name_color(choose_color(share))}'/>"
        for idx, share in enumerate(shares)
    )
    low, high, text = map(escape, legend)
    words = "font-family='sans-serif' font-size='11' fill='#222'"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{total}' "
        f"viewBox='0 0 {WIDTH} {total}'><rect width='100%' height='100%' fill='#fff'/>"
        f"<text x='{WIDTH / 2}' y='14' text-anchor='middle' {words}>{escape(title)}</text>"
        f"{body}{beside}{boxes}"
        f"<text x='{left - 6}' y='{top + 9}' text-anchor='end' {words}>{low}</text>"
        f"<text x='{left + bar + 6}' y='{top + 9}' {words}>{high}</text>"
        f"<text x='{WIDTH / 2}' y='{top + 28}' text-anchor='middle' {words}>{text}</text></svg>"
    )


def _name_color(color: Color) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in color)
