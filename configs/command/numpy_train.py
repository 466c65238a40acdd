"""Trains a small network with NumPy: the sine of ten numbers' sum, by gradient descent with momentum.

What a step draws depends on the seed and the step alone, so a run that was cut and went on from a checkpoint ends with
the very weights of one that was not.
"""

import json
import os
import pathlib
import signal
import time

import numpy as np

HIDDEN = 64


def say(event, **members):
    print(json.dumps({"v": 1, "event": event, **members}), flush=True)


def begin(seed):
    draw = np.random.default_rng(seed)
    weights = {"w1": draw.normal(0, 0.3, (10, HIDDEN)), "b1": np.zeros(HIDDEN), "w2": draw.normal(0, 0.3, (HIDDEN, 1))}
    return weights, {name: np.zeros_like(value) for name, value in weights.items()}


def load(folder):
    with np.load(folder / "state.npz") as state:
        parts = [{name[2:]: state[name] for name in state if name.startswith(part)} for part in ("w/", "m/")]
    return parts[0], parts[1]


def save(step, weights, momentum):
    folder = pathlib.Path(os.environ["MLOC_CHECKPOINTS"], f"step-{step}")
    folder.mkdir()
    parts = {f"w/{name}": value for name, value in weights.items()} | {f"m/{n}": v for n, v in momentum.items()}
    np.savez(folder / "state.npz", **parts)
    say("checkpoint", step=step, dir=str(folder))


def train_step(step, seed, weights, momentum, rate):
    draw = np.random.default_rng([seed, step])
    x = draw.normal(0, 1, (32, 10))
    y = np.sin(x.sum(axis=1, keepdims=True))
    hidden = np.tanh(x @ weights["w1"] + weights["b1"])
    error = hidden @ weights["w2"] - y
    back = (error @ weights["w2"].T) * (1 - hidden**2)
    gradients = {"w1": x.T @ back, "b1": back.sum(axis=0), "w2": hidden.T @ error}
    for name, gradient in gradients.items():
        momentum[name] = 0.9 * momentum[name] + gradient / len(x)
        weights[name] = weights[name] - rate * momentum[name]
    return float((error**2).mean())


def main():
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    task = json.load(open(os.environ["MLOC_TASK"]))
    settings = {"steps": 400, "save_steps": 50, "rate": 0.05, "seed": 7, "step_seconds": 0.0}
    settings |= task["spec"]["hyperparameters"]
    step = int(os.environ.get("MLOC_RESUME_STEP", 0))
    resume = os.environ.get("MLOC_RESUME")
    weights, momentum = load(pathlib.Path(resume)) if resume else begin(settings["seed"])
    print(f"NumPy {np.__version__}, from step {step}")
    loss = None
    while step < settings["steps"]:
        time.sleep(settings["step_seconds"])
        loss = train_step(step, settings["seed"], weights, momentum, settings["rate"])
        step += 1
        say("progress", step=step, total_steps=settings["steps"], loss=loss)
        if stopping or (step % settings["save_steps"] == 0 and step < settings["steps"]):
            save(step, weights, momentum)
        if stopping:
            return
    artifacts = pathlib.Path(os.environ["MLOC_ARTIFACTS"])
    for name, value in weights.items():
        np.save(artifacts / f"{name}.npy", value)
    say("result", summary={"loss": loss, "steps": step})


main()
