//! Pythons for cases with programs of users.

use std::{path::PathBuf, process::Command};

/// A Python that has NumPy. `None`, and a line that is counted, where it can't be had.
///
/// # Errors
/// When it may not be missing.
pub fn numpy() -> anyhow::Result<Option<PathBuf>> {
    let ran = super::run_to_end(Command::new(crate::root().join("tests/fixtures/numpy.sh")).arg(crate::target_tmp()))?;
    if ran.code != 0 {
        crate::skip("no NumPy: numpy 2.2.6 is neither installed nor to be had from PyPI")?;
        return Ok(None);
    }
    Ok(Some(ran.out.trim().into()))
}

/// Whether there is a Python at all; without one, a line that is counted.
///
/// # Errors
/// When it may not be missing.
pub fn python() -> anyhow::Result<bool> {
    let there = Command::new("python3").arg("--version").output().is_ok_and(|ran| ran.status.success());
    if !there {
        crate::skip("no python3 on this machine")?;
    }
    Ok(there)
}
