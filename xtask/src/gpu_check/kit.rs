//! What is checked with: the host, the plugins and the golden cases of a bundle that was unpacked, else of this checkout.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::report::{Report, Verdict};
use crate::error::{Doing, Error, Result};
use crate::shell;
use crate::workspace::{Profile, Workspace, root};

/// Says what a folder is the bundle of.
pub(crate) const MANIFEST: &str = "bundle.json";
/// Folders, other than those of Python, where CUDA's libraries are found.
const FOLDERS: [&str; 6] = [
    "/usr/local/nvidia/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/local/cuda/lib64",
    "/usr/local/cuda/targets/x86_64-linux/lib",
    "/usr/lib64",
    "/usr/lib/wsl/lib",
];
/// Prints the folders of libraries that Python packages of CUDA have, one a line.
const PYTHON_FOLDERS: &str = "import glob,site,sys
for base in {*site.getsitepackages(), site.getusersitepackages(), *sys.path}:
    for folder in sorted(glob.glob(base + '/nvidia/*/lib')): print(folder)";

/// Where everything is.
#[derive(Debug)]
pub(super) struct Kit {
    pub(super) host: PathBuf,
    /// Files of plugins by name: `flux`, `echo`, `faulty`.
    plugins: PathBuf,
    prefix: Option<&'static str>,
    pub(super) program: PathBuf,
    /// The same for decoders.
    pub(super) decoder: PathBuf,
    pub(super) golden: PathBuf,
    /// The management library on paper, for rehearsals.
    pub(super) nvml: PathBuf,
    /// Where results go if nobody says.
    pub(super) results: PathBuf,
    /// `LD_LIBRARY_PATH` of what needs CUDA.
    pub(super) libraries: String,
    about: Value,
}

impl Kit {
    /// The bundle that this program lies in, else this checkout, built for a rehearsal.
    pub(super) fn find(rehearse: bool) -> Result<Self> {
        let program = std::env::current_exe().doing("find this program")?;
        let bundle = program.ancestors().nth(2).filter(|folder| folder.join(MANIFEST).is_file());
        match bundle {
            Some(folder) => Self::of_bundle(folder, rehearse),
            None if rehearse => Self::of_checkout(),
            None => Err(Error::new(
                "gpu-check runs from a bundle: build one with `cargo xtask gpu-bundle`, unpack it on the machine with the card, and run its `gpu-check`; here, `cargo xtask gpu-check --rehearse` runs every part without a card",
            )),
        }
    }

    fn of_bundle(folder: &Path, rehearse: bool) -> Result<Self> {
        let manifest = folder.join(MANIFEST);
        let text = fs::read_to_string(&manifest).doing(format_args!("read {}", manifest.display()))?;
        let about: Value = serde_json::from_str(&text).doing(format_args!("read {}", manifest.display()))?;
        let needed = about["libraries"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let (libraries, missing) = libraries(needed);
        if !missing.is_empty() {
            let advice = match (missing.iter().any(|name| name.starts_with("libcuda.")), rehearse) {
                (true, false) => "there is no NVIDIA driver on this machine, and nothing can be checked without one",
                (true, true) => {
                    "a rehearsal of a bundle needs a stand-in for the driver's library on LD_LIBRARY_PATH; `cargo xtask gpu-check --rehearse` in a checkout needs none"
                }
                (false, _) => {
                    "install CUDA's libraries of that version, or the Python packages that have them, or add their folder to LD_LIBRARY_PATH"
                }
            };
            return Err(Error(format!("{} cannot be found; {advice}", missing.join(", "))));
        }
        Ok(Self {
            host: folder.join("bin/aihost"),
            plugins: folder.join("plugins"),
            prefix: None,
            program: folder.join("bin/flux_device"),
            decoder: folder.join("bin/llm_device"),
            golden: folder.join("golden"),
            nvml: folder.join("plugins/nvml.so"),
            results: "gpu-check.jsonl".into(),
            libraries,
            about,
        })
    }

    fn of_checkout() -> Result<Self> {
        let workspace = Workspace::read()?;
        workspace.build_all(Profile::Dev)?;
        let built = |name: &str| workspace.built(Profile::Dev, name);
        fs::create_dir_all(workspace.staging()).doing("create target/aihost")?;
        Ok(Self {
            host: built("aihost"),
            plugins: built(""),
            prefix: Some("libfixture_"),
            program: built("examples/flux_device"),
            decoder: built("examples/llm_device"),
            golden: root().join("tests/golden/flux"),
            nvml: built("libfixture_nvml.so"),
            results: workspace.staging().join("gpu-check.jsonl"),
            libraries: String::new(),
            about: json!({"built": "this checkout, for a rehearsal"}),
        })
    }

    /// The file of a plugin.
    pub(super) fn plugin(&self, name: &str) -> PathBuf {
        match self.prefix {
            None => self.plugins.join(format!("{name}.so")),
            Some(_) if name == "flux" => self.plugins.join("libflux.so"),
            Some(prefix) => self.plugins.join(format!("{prefix}{name}.so")),
        }
    }

    /// What this is, and what it runs on.
    pub(super) fn describe(&self, device: &str, report: &mut Report) -> Result {
        report.say("bundle", &self.about, Verdict::Figure)?;
        let query = ["--query-gpu=name,driver_version,memory.total,compute_cap,uuid", "--format=csv,noheader"];
        let cards = if device == "cpu" { None } else { shell::probe("nvidia-smi", &query) };
        let cards = cards.unwrap_or_else(|| "none: a rehearsal, or no nvidia-smi".to_owned());
        report.say("cards", &cards.into(), Verdict::Figure)?;
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        report.say("CUDA_VISIBLE_DEVICES", &visible.into(), Verdict::Figure)
    }

    /// A command that finds CUDA's libraries.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if !self.libraries.is_empty() {
            command.env("LD_LIBRARY_PATH", &self.libraries);
        }
        command
    }
}

/// A search path on which these libraries lie, and those that lie nowhere.
fn libraries<'a>(needed: impl Iterator<Item = &'a str>) -> (String, Vec<&'a str>) {
    let own = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let python = shell::probe("python3", &["-c", PYTHON_FOLDERS]).unwrap_or_default();
    let known = shell::probe("ldconfig", &["-p"]).unwrap_or_default();
    let mut folders: Vec<String> = own.split(':').map(str::to_owned).filter(|folder| !folder.is_empty()).collect();
    folders.extend(FOLDERS.map(str::to_owned));
    folders.extend(python.lines().map(str::to_owned));
    pick(needed, &folders, &known)
}

/// Of these folders those that are needed, in order; `known` is what `ldconfig -p` prints.
fn pick<'a>(needed: impl Iterator<Item = &'a str>, folders: &[String], known: &str) -> (String, Vec<&'a str>) {
    let (mut used, mut missing) = (Vec::<&String>::new(), Vec::new());
    for name in needed {
        match folders.iter().find(|folder| Path::new(folder).join(name).exists()) {
            Some(folder) if used.contains(&folder) => {}
            Some(folder) => used.push(folder),
            None if known.lines().any(|line| line.trim_start().starts_with(&format!("{name} "))) => {}
            None => missing.push(name),
        }
    }
    (used.iter().map(|folder| folder.as_str()).collect::<Vec<_>>().join(":"), missing)
}

#[cfg(test)]
mod tests {
    use super::pick;

    #[test]
    fn libraries_are_found_in_folders_and_by_the_system_and_the_others_are_named() {
        let folder = std::env::temp_dir().join(format!("xtask-libraries-{}", std::process::id()));
        for (name, file) in [("a", "libcublas.so.13"), ("b", "libcurand.so.10"), ("b", "libcublas.so.13")] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
            std::fs::write(folder.join(name).join(file), b"").unwrap();
        }
        let folders: Vec<String> = ["none", "a", "b", "c"].map(|name| folder.join(name).display().to_string()).into();
        let known = "123 libs found\n\tlibcuda.so.1 (libc6,x86-64) => /usr/lib/libcuda.so.1\n";
        let needed = ["libcuda.so.1", "libcublas.so.13", "libcurand.so.10", "libcudart.so.13"];
        let (path, missing) = pick(needed.into_iter(), &folders, known);
        assert_eq!((path, missing), (format!("{}:{}", folders[1], folders[2]), vec!["libcudart.so.13"]));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
