"""A module of your own in forty lines of Python without dependencies: what MLOC tells a program, and what it hears.

It counts to `steps`, saves now and then, goes on where an earlier attempt stopped, and stops when it is asked to.
exec/modules/COMMAND.md has every word of it.
"""

import json
import os
import pathlib
import signal
import time


def say(event, **members):
    print(json.dumps({"v": 1, "event": event, **members}), flush=True)


def save(step):
    folder = pathlib.Path(os.environ["MLOC_CHECKPOINTS"], f"at-{step}")
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"step": step}))
    say("checkpoint", step=step, dir=str(folder))  # from here on the folder is the mesh's


stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))

task = json.load(open(os.environ["MLOC_TASK"]))
settings = {"steps": 20, "seconds": 0.05, "save_steps": 5, **task["spec"]["hyperparameters"]}
step = 0
if "MLOC_RESUME" in os.environ:
    step = json.loads(pathlib.Path(os.environ["MLOC_RESUME"], "state.json").read_text())["step"]
print(f"counting from {step} to {settings['steps']}")  # whatever is no event is the log

while step < settings["steps"]:
    time.sleep(settings["seconds"])
    step += 1
    say("progress", step=step, total_steps=settings["steps"], loss=1 / step)
    if stopping:
        save(step)
        raise SystemExit
    if step % settings["save_steps"] == 0 and step < settings["steps"]:
        save(step)

pathlib.Path(os.environ["MLOC_ARTIFACTS"], "counted.txt").write_text(f"{step}\n")
say("result", summary={"counted": step})
