//! CUDA's pieces on this machine: the driver's library, the run-time compiler, and the headers that kernels include.
//!
//! A build with CUDA needs none of them to start. Kernels are compiled on the machine they run on, so each of them is
//! found here, or it is said what is missing and where it was looked for.

use std::path::{Path, PathBuf};

/// What kernels of half precision and of matrix units include; where these are, the others are.
const HEADERS: [&str; 3] = ["cuda_fp16.h", "cuda_bf16.h", "mma.h"];
/// Where a toolkit is named.
const VARIABLES: [&str; 3] = ["CUDA_PATH", "CUDA_HOME", "CUDA_ROOT"];
/// Where one is installed: by NVIDIA's packages, by Arch, by Debian.
const PLACES: [&str; 3] = ["/usr/local/cuda", "/opt/cuda", "/usr"];

/// What this build finds of CUDA here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cuda {
    /// The CUDA version that the driver speaks, `12.8`, or why it can't be asked.
    pub driver: Result<String, String>,
    /// The version of the run-time compiler, or why there is none.
    pub nvrtc: Result<String, String>,
    /// The folder whose `include/` has the headers, or where they were looked for.
    pub headers: Result<PathBuf, String>,
}

impl Cuda {
    /// Looks.
    pub fn find() -> Self {
        let (driver, nvrtc) = libraries();
        let headers = find_headers(&candidates(|name| std::env::var_os(name).map(PathBuf::from), "/usr/local"));
        Self { driver, nvrtc, headers }
    }

    /// What kernels lack first, if they lack anything.
    pub fn missing(&self) -> Option<String> {
        let first = self.driver.as_ref().err().or(self.nvrtc.as_ref().err()).or(self.headers.as_ref().err());
        first.cloned()
    }
}

/// The libraries, which are loaded to be asked.
#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "foreign functions of libraries that were just seen to load")]
fn libraries() -> (Result<String, String>, Result<String, String>) {
    use cudarc::{driver::sys as driver, nvrtc::sys as nvrtc};
    let absent = |what: &str| format!("{what} cannot be loaded: install it, or name its folder in LD_LIBRARY_PATH");
    let (mut version, mut major, mut minor) = (0, 0, 0);
    // SAFETY: each is called only when its library is there, with pointers to integers of this frame.
    let (driver, nvrtc) = unsafe {
        (
            driver::is_culib_present().then(|| driver::cuDriverGetVersion(&raw mut version)),
            nvrtc::is_culib_present().then(|| nvrtc::nvrtcVersion(&raw mut major, &raw mut minor)),
        )
    };
    let driver = match driver {
        None => Err(absent("libcuda (the driver's library)")),
        Some(driver::CUresult::CUDA_SUCCESS) => Ok(format!("{}.{}", version / 1000, version % 1000 / 10)),
        Some(error) => Err(format!("libcuda does not say its version: {error:?}")),
    };
    let nvrtc = match nvrtc {
        None => Err(absent("libnvrtc (CUDA's run-time compiler)")),
        Some(nvrtc::nvrtcResult::NVRTC_SUCCESS) => Ok(format!("{major}.{minor}")),
        Some(error) => Err(format!("libnvrtc does not say its version: {error:?}")),
    };
    (driver, nvrtc)
}

/// A build without CUDA loads nothing.
#[cfg(not(feature = "cuda"))]
fn libraries() -> (Result<String, String>, Result<String, String>) {
    let none = || Err("this build of mloc has no CUDA: use one with the feature `cuda`".to_owned());
    (none(), none())
}

/// Folders that may have an `include/` with the headers, the named ones first, then the newest versions.
fn candidates(named: impl Fn(&str) -> Option<PathBuf>, versions_in: impl AsRef<Path>) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = VARIABLES.iter().filter_map(|name| named(name)).collect();
    // Conda keeps the headers of a target below the environment.
    found.extend(named("CONDA_PREFIX").into_iter().flat_map(|env| [env.join("targets/x86_64-linux"), env]));
    found.extend(PLACES.map(PathBuf::from));
    let entries = std::fs::read_dir(versions_in).into_iter().flatten().flatten().map(|entry| entry.path());
    let version = |path: &Path| -> Option<Vec<u32>> {
        let version = path.file_name()?.to_str()?.strip_prefix("cuda-")?;
        version.split('.').map(|part| part.parse().ok()).collect()
    };
    let mut versions: Vec<_> = entries.filter_map(|path| Some((version(&path)?, path))).collect();
    versions.sort();
    found.extend(versions.into_iter().rev().map(|(_, path)| path));
    found
}

fn find_headers(candidates: &[PathBuf]) -> Result<PathBuf, String> {
    let has_all = |root: &&PathBuf| HEADERS.iter().all(|header| root.join("include").join(header).is_file());
    candidates.iter().find(has_all).cloned().ok_or_else(|| {
        let looked: Vec<_> = candidates.iter().map(|root| root.join("include").display().to_string()).collect();
        format!(
            "CUDA's headers ({}) are in none of {}: install them (NVIDIA's cuda-cudart-dev and cuda-crt, or \
             nvidia-cuda-runtime of PyPI), or name their folder in CUDA_PATH",
            HEADERS.join(", "),
            looked.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toolkit(root: &Path, headers: &[&str]) {
        std::fs::create_dir_all(root.join("include")).unwrap();
        headers.iter().for_each(|header| std::fs::write(root.join("include").join(header), "").unwrap());
    }

    #[test]
    fn headers_are_found_where_they_are_named_then_in_the_newest_version() {
        let top = tempfile::tempdir().unwrap();
        let (named, local) = (top.path().join("named"), top.path().join("local"));
        for version in ["cuda-9.2", "cuda-12.8", "cuda-12.10", "cuda-samples"] {
            toolkit(&local.join(version), &HEADERS);
        }
        toolkit(&named, &HEADERS);
        let found = candidates(|name| (name == "CUDA_HOME").then(|| named.clone()), &local);
        assert_eq!(found[0], named);
        let versions: Vec<_> = found.iter().filter_map(|path| path.strip_prefix(&local).ok()).collect();
        assert_eq!(versions, [Path::new("cuda-12.10"), Path::new("cuda-12.8"), Path::new("cuda-9.2")]);
        assert_eq!(find_headers(&found), Ok(named));
        assert_eq!(find_headers(&found[found.len() - 3..]), Ok(local.join("cuda-12.10")));
    }

    #[test]
    fn where_headers_were_looked_for_is_said() {
        let top = tempfile::tempdir().unwrap();
        toolkit(top.path(), &HEADERS[..1]);
        let error = find_headers(&[top.path().to_owned()]).unwrap_err();
        assert!(error.contains(&top.path().join("include").display().to_string()), "{error}");
        assert!(error.contains("mma.h") && error.contains("CUDA_PATH"), "{error}");
    }
}
