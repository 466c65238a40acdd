//! README's first command, shortened: `mloc run` on the quickstart's own model and data, seen as a user sees it.

use std::{fs, process::Command};

use anyhow::Context;
use mloc_tests::{mloc, root, run_to_end};

/// The quickstart with fewer steps, in a folder of its own beside the same model and data.
fn shortened(folder: &std::path::Path) -> anyhow::Result<std::path::PathBuf> {
    let whole = fs::read_to_string(root().join("configs/quickstart.yaml"))?;
    let short = whole
        .replace("max_steps: 175", "max_steps: 12")
        .replace("save_steps: 50", "save_steps: 5")
        .replace("generation_max_new_tokens: 32", "generation_max_new_tokens: 6");
    anyhow::ensure!(short.contains("max_steps: 12"), "the quickstart's steps are another number now");
    let file = folder.join("quickstart.yaml");
    fs::write(&file, short)?;
    std::os::unix::fs::symlink(root().join("configs/quickstart"), folder.join("quickstart"))?;
    Ok(file)
}

#[test]
fn run_shows_artifacts_both_losses_both_answers_and_the_usage_row_and_can_be_run_again() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let file = shortened(dir.path())?;
    for _ in 0..2 {
        let ran = run_to_end(Command::new(mloc()).arg("run").arg(&file).current_dir(dir.path()))?;
        assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
        let line = |start: &str| {
            let found = ran.out.lines().find(|line| line.trim_start().starts_with(start));
            found.map(|line| line.trim_start()[start.len()..].trim().to_owned())
        };
        let place = line("artifacts").with_context(|| ran.out.clone())?;
        let place = std::path::PathBuf::from(place.strip_prefix("file://").unwrap_or(&place));
        assert!(place.join("adapter_model.safetensors").is_file(), "artifacts at {}: {}", place.display(), ran.out);
        let losses = line("loss on held-out data").with_context(|| ran.out.clone())?;
        let (before, after) = losses.split_once(" before, ").context("both")?;
        let (before, after): (f64, f64) = (before.parse()?, after.trim_end_matches(" after").parse()?);
        assert!(after < before, "{losses}");
        for part in ["prompt", "before", "after", "usage"] {
            assert!(line(part).is_some(), "{part} in {}", ran.out);
        }
        assert!(ran.err.contains("RUNNING TRAINING"), "phases are told where there is no terminal: {}", ran.err);
    }
    Ok(())
}
