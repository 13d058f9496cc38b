"""Print a table of the finetuned folders of effect_of_pretraining.sh, MODEL-SET-split_I-seed_J."""

import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

values: dict[tuple[str, str], dict[str, tuple[float, float]]] = defaultdict(dict)
for path in sorted(Path(sys.argv[1]).glob("*/metrics.json")):
    match = re.fullmatch(
        r"(.+)-(freesolv|esol|bbbp|estrogen-beta)-(split_\d-seed_\d)", path.parent.name
    )
    if match is None:
        continue
    metrics = json.loads(path.read_text(encoding="utf-8"))
    name = "rmse" if "rmse" in metrics["test"] else "roc_auc"
    scores = (metrics["valid"][name], metrics["test"][name])
    values[match[2], match[1]][match[3]] = scores
for (dataset, model), runs in sorted(values.items()):
    for idx, part in enumerate(("valid", "test")):
        numbers = [scores[idx] for scores in runs.values()]
        cells = " ".join(f"{number:.3f}" for number in numbers)
        mean, std = statistics.fmean(numbers), statistics.pstdev(numbers)
        print(f"| {dataset} | {model} | {part} | {cells} | {mean:.3f} ± {std:.3f} |")
