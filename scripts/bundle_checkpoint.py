"""Copy a pretrained model into the package: python scripts/bundle_checkpoint.py FOLDER TARGET.

Without the code, which the package has anyway, and so without the entries that point to it.
"""

import json
import shutil
import sys
from pathlib import Path

folder, target = map(Path, sys.argv[1:])
shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.py"), dirs_exist_ok=True)
for name in ("config.json", "preprocessor_config.json"):
    options = json.loads((target / name).read_text(encoding="utf-8"))
    for key in ("auto_map", "custom_pipelines"):
        options.pop(key, None)
    (target / name).write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
print(f"Wrote {target}.")
