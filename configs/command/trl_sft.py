"""Supervised fine-tuning with TRL, as it is: one callback tells MLOC how far it is and hands checkpoints over.

The task's hyperparameters are SFTConfig's own, its model and data set are pulled by the node and named by MLOC_MODEL and
MLOC_DATASET. Needs `trl`, `peft` and `datasets` in the Python that runs it.
"""

import json
import os
import pathlib
import signal

from datasets import load_dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))


class Mesh(TrainerCallback):
    """Says to MLOC what the trainer does."""

    def say(self, state, event, **members):
        if state.is_world_process_zero:
            print(json.dumps({"v": 1, "event": event, **members}), flush=True)

    def on_step_end(self, args, state, control, **kwargs):
        if stopping:
            control.should_save = control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.say(state, "progress", step=state.global_step, total_steps=state.max_steps, loss=float(logs["loss"]))

    def on_save(self, args, state, control, **kwargs):
        folder = pathlib.Path(args.output_dir, f"checkpoint-{state.global_step}")
        self.say(state, "checkpoint", step=state.global_step, dir=str(folder))


def main():
    spec = json.load(open(os.environ["MLOC_TASK"]))["spec"]
    data = pathlib.Path(os.environ["MLOC_DATASET"])
    files = str(data) if data.is_file() else sorted(str(file) for file in data.glob("*.jsonl"))
    adapter = spec["model"].get("adapter")
    lora = adapter and LoraConfig(
        r=adapter["r"],
        lora_alpha=adapter["lora_alpha"],
        lora_dropout=adapter["lora_dropout"],
        target_modules=adapter["target_modules"],
        task_type="CAUSAL_LM",
    )
    trainer = SFTTrainer(
        model=os.environ["MLOC_MODEL"],
        args=SFTConfig(output_dir=os.environ["MLOC_CHECKPOINTS"], report_to="none", **spec["hyperparameters"]),
        train_dataset=load_dataset("json", data_files=files, split="train"),
        peft_config=lora,
        callbacks=[Mesh()],
    )
    trainer.train(resume_from_checkpoint=os.environ.get("MLOC_RESUME"))
    if not stopping:
        trainer.save_model(os.environ["MLOC_ARTIFACTS"])


main()
