#!/usr/bin/env python3
"""Compiles what the example `cuda_source` wrote with NVRTC, which needs neither a GPU nor a driver.

compile_cuda.py FOLDER ARCHITECTURE, as sm_90a. NVRTC and CUDA's headers are those of the packages
nvidia-cuda-nvrtc-cu12 and nvidia-cuda-runtime-cu12 in this interpreter's environment.
"""

import ctypes
import pathlib
import re
import sys

import nvidia.cuda_nvrtc
import nvidia.cuda_runtime

folder, architecture = pathlib.Path(sys.argv[1]), sys.argv[2]
library = next((pathlib.Path(nvidia.cuda_nvrtc.__path__[0]) / "lib").glob("libnvrtc.so.*"))
headers = pathlib.Path(nvidia.cuda_runtime.__path__[0]) / "include"
nvrtc = ctypes.CDLL(str(library))


def text_of(program, kind):
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{kind}")(program, text)
    return text.raw


# How many bytes of registers a kernel may put aside; more says that it has outgrown them.
MOST_SPILLED = 64

failed = 0
sources = sorted(folder.glob("*.cu"))
for source in sources:
    # The options are those of cubecl-cuda, with machine code instead of PTX: what cannot be assembled fails too.
    options = [f"--gpu-architecture={architecture}", f"--include-path={headers}", "-lineinfo", "--ptxas-options=-v"]
    program = ctypes.c_void_p()
    code = source.read_bytes()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), code, source.name.encode(), 0, None, None)
    words = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    status = nvrtc.nvrtcCompileProgram(program, len(options), words)
    log = text_of(program, "ProgramLog").decode(errors="replace")
    registers, spilled = re.search(r"Used (\d+) registers", log), re.search(r"(\d+) bytes spill stores", log)
    if status != 0 or registers is None or spilled is None:
        failed += 1
        print(f"{source.name}: {log[:2000]}")
        continue
    print(f"{source.name}: {registers[1]} registers, {spilled[1]} bytes spilled")
    failed += int(spilled[1]) > MOST_SPILLED
print(f"{len(sources) - failed} of {len(sources)} kernels compile for {architecture}, none spills more than {MOST_SPILLED} bytes")
sys.exit(1 if failed or not sources else 0)
