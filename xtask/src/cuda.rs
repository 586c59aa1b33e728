//! CUDA's toolkit, for builds: the one that is installed, else one of the package index's wheels, fetched by the built host
//! and put together below target/. No driver and no card is needed to build.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Doing, Error, Result};
use crate::shell;
use crate::workspace::{Profile, Workspace};

/// What is fetched where no toolkit is installed. Not newer than the drivers in use: what a newer nvcc writes for a card to
/// compile, an older driver refuses.
const WHEELS: [&str; 8] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-nvrtc==13.0.88",
    "nvidia-cublas==13.1.0.3",
    "nvidia-curand==10.4.0.35",
];
/// Its version.
const FETCHED: Version = Version(13, 0);
/// Where the wheels put it.
const INSIDE: &str = "nvidia/cu13";
/// Written last, so that what broke off is begun anew.
const COMPLETE: &str = "complete";
/// Libraries that are linked under names without a version.
const LINKED: [&str; 5] = ["libcudart", "libcublas", "libcublasLt", "libcurand", "libnvrtc"];
/// `CUDA_ERROR_STUB_LIBRARY`
const STUB_LIBRARY: u32 = 34;
/// What is built for where no card says what it is: the H100's and H200's.
const USUAL_CAP: Cap = Cap(90);
/// From this compute capability on, what is compiled for one runs on no other: nvcc is told to use all of the card.
const EXACT_FROM: Cap = Cap(90);

/// A version of CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A compute capability, ten times: 89 is 8.9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cap(pub(crate) u32);

impl std::str::FromStr for Cap {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let digits: String = text.trim().chars().filter(|c| *c != '.').collect();
        let cap = digits.parse().ok().filter(|cap| (50..=200).contains(cap));
        cap.map(Self).ok_or_else(|| format!("`{text}` is no compute capability; 80, 89 and 90 are"))
    }
}

/// A toolkit with nvcc.
#[derive(Clone, Debug)]
pub(crate) struct Toolkit {
    /// The folder of `bin`, `include` and `lib` or `lib64`.
    pub(crate) root: PathBuf,
    pub(crate) version: Version,
}

impl Toolkit {
    /// The one that is installed, else the one that was or is now put together.
    pub(crate) fn find(workspace: &Workspace) -> Result<Self> {
        if let Some(installed) = installed() {
            return Ok(installed);
        }
        let folder = workspace.staging().join("cuda").join(FETCHED.to_string());
        let toolkit = Self { root: folder.join(INSIDE), version: FETCHED };
        if !folder.join(COMPLETE).is_file() {
            fetch(workspace, &folder)?;
            toolkit.finish()?;
            fs::write(folder.join(COMPLETE), "").doing(format_args!("write into {}", folder.display()))?;
        }
        Ok(toolkit)
    }

    /// What a cargo is told that builds kernels for these cards. Nothing that rustc is told changes, so that what has no
    /// kernels is not compiled again.
    pub(crate) fn tell(&self, command: &mut Command, caps: &[Cap]) -> Result {
        for name in ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"] {
            command.env(name, &self.root);
        }
        let bin = [self.root.join("bin")];
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = std::env::join_paths(bin.into_iter().chain(std::env::split_paths(&path))).doing("extend PATH")?;
        command.env("PATH", paths);
        // Executables are linked with what libraries need in turn, too.
        command.env("LIBRARY_PATH", self.libraries());
        command.env("AIHOST_CUDA_TOOLKIT", self.version.to_string());
        if let [first, more @ ..] = caps {
            command.env("CUDA_COMPUTE_CAP", first.0.to_string());
            if !more.is_empty() {
                command.env("NVCC", self.nvcc_for(first, more)?);
            }
        }
        Ok(())
    }

    /// A search path of its libraries, the stand-in for the driver's last.
    pub(crate) fn libraries(&self) -> String {
        format!("{0}:{0}/stubs", self.root.join("lib").display())
    }

    /// An nvcc that compiles machine code for more cards than the one it is told of. What it writes for drivers to compile
    /// is for the least of them, and runs on the others.
    fn nvcc_for(&self, first: &Cap, more: &[Cap]) -> Result<PathBuf> {
        let codes: String = more.iter().map(|cap| format!(" -gencode=arch=compute_{0},code=sm_{0}", cap.0)).collect();
        let names: String = more.iter().map(|cap| format!("-{}", cap.0)).collect();
        let nvcc = self.root.join("bin/nvcc");
        let script = format!(
            "#!/bin/sh\ncase \" $* \" in\n*\" -c \"*) exec {0} \"$@\"{codes} ;;\n*) exec {0} \"$@\" ;;\nesac\n",
            nvcc.display()
        );
        let folder = crate::workspace::root().join("target/aihost/cuda");
        let file = folder.join(format!("nvcc-{}{names}", first.0));
        fs::create_dir_all(&folder).doing(format_args!("create {}", folder.display()))?;
        if fs::read_to_string(&file).ok().as_deref() != Some(script.as_str()) {
            fs::write(&file, script).doing(format_args!("write {}", file.display()))?;
        }
        executable(&file)?;
        Ok(file)
    }

    /// What wheels cannot carry: permissions, links, and a driver's library to link against.
    fn finish(&self) -> Result {
        for folder in ["bin", "nvvm/bin"].map(|folder| self.root.join(folder)) {
            for entry in fs::read_dir(&folder).doing(format_args!("read {}", folder.display()))?.flatten() {
                if entry.path().is_file() {
                    executable(&entry.path())?;
                }
            }
        }
        let libraries = self.root.join("lib");
        link("lib", &self.root.join("lib64"))?;
        let names: Vec<String> = fs::read_dir(&libraries)
            .doing(format_args!("read {}", libraries.display()))?
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        for library in LINKED {
            let versioned = names.iter().find(|name| name.starts_with(&format!("{library}.so.")));
            let versioned = versioned.ok_or_else(|| Error(format!("the wheels have no {library}")))?;
            link(versioned, &libraries.join(format!("{library}.so")))?;
        }
        self.stub(&libraries.join("stubs"))
    }

    /// The driver's library is on machines with a driver. This one has its name and every function that its header names, so
    /// that executables are linked too; each says that it is a stub, as NVIDIA's own stubs do.
    fn stub(&self, folder: &Path) -> Result {
        let header = self.root.join("include/cuda.h");
        let header = fs::read_to_string(&header).doing(format_args!("read {}", header.display()))?;
        let source: String = functions(&header)
            .into_iter()
            .map(|name| format!("int {name}(void) {{ return {STUB_LIBRARY}; }}\n"))
            .collect();
        fs::create_dir_all(folder).doing(format_args!("create {}", folder.display()))?;
        let file = folder.join("libcuda.c");
        fs::write(&file, source).doing(format_args!("write {}", file.display()))?;
        let mut gcc = Command::new("gcc");
        gcc.args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"]).arg(folder.join("libcuda.so")).arg(&file);
        shell::run(&mut gcc)?;
        // Under the name that programs ask for, it lets them start where nothing of a card is used.
        link("libcuda.so", &folder.join("libcuda.so.1"))
    }
}

/// Which cards are built for: those that were named, least first, else the machine's own.
pub(crate) fn caps(named: &[Cap]) -> Result<Vec<Cap>> {
    let caps: BTreeSet<Cap> = if named.is_empty() { own_caps() } else { named.iter().copied().collect() };
    let caps: Vec<Cap> = if caps.is_empty() { vec![USUAL_CAP] } else { caps.into_iter().collect() };
    match caps.as_slice() {
        [first, _, ..] if *first >= EXACT_FROM => Err(Error(format!(
            "kernels for compute capability {} run on such cards alone; name one, or name one below {} beside it",
            first.0, EXACT_FROM.0
        ))),
        _ => Ok(caps),
    }
}

/// One paragraph if this machine's driver is too old for what this toolkit builds.
pub(crate) fn driver_notice(toolkit: &Toolkit) -> Option<String> {
    older(driver(&shell::probe("nvidia-smi", &[])?)?, toolkit.version)
}

fn older(driver: Version, toolkit: Version) -> Option<String> {
    (driver < toolkit).then(|| {
        format!(
            "note: this machine's driver serves CUDA up to {driver} and the toolkit is {toolkit}: kernels that are built with it \
             do not run here.\nnote: update the driver, or set CUDA_HOME to a toolkit of {driver} or older."
        )
    })
}

/// The version that nvidia-smi says the driver serves: `CUDA Version: 12.4`.
fn driver(said: &str) -> Option<Version> {
    version(said.split_once("CUDA Version:")?.1)
}

/// The first version in a text.
fn version(text: &str) -> Option<Version> {
    let text = text.trim_start();
    let (major, rest) = text.split_once('.')?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some(Version(major.parse().ok()?, minor.parse().ok()?))
}

fn own_caps() -> BTreeSet<Cap> {
    let said = shell::probe("nvidia-smi", &["--query-gpu=compute_cap", "--format=csv,noheader"]).unwrap_or_default();
    said.lines().filter_map(|line| line.parse().ok()).collect()
}

fn installed() -> Option<Toolkit> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let homes = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"].into_iter().filter_map(variable);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("nvcc"));
    let usual = ["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from);
    let of_homes = |homes: Vec<PathBuf>| homes.into_iter().map(|home| home.join("bin/nvcc"));
    let candidates = variable("NVCC").into_iter().chain(of_homes(homes.collect())).chain(on_path);
    candidates.chain(of_homes(usual.into())).find_map(|nvcc| {
        let nvcc = nvcc.is_file().then(|| fs::canonicalize(nvcc).ok())??;
        let said = shell::probe(nvcc.to_str()?, &["--version"])?;
        let version = version(said.split_once("release ")?.1)?;
        Some(Toolkit { root: nvcc.parent()?.parent()?.to_owned(), version })
    })
}

fn fetch(workspace: &Workspace, folder: &Path) -> Result {
    eprintln!("note: no nvcc is here, so CUDA {FETCHED}'s is fetched from the package index into {}", folder.display());
    workspace.build_host(Profile::Dev, &[])?;
    // What broke off is no beginning.
    if folder.exists() {
        fs::remove_dir_all(folder).doing(format_args!("remove {}", folder.display()))?;
    }
    let mut command = Command::new(workspace.host(Profile::Dev));
    shell::run(command.arg("wheels").arg(folder).args(WHEELS)).map_err(|error| {
        Error(format!(
            "{error}: there is no nvcc, and CUDA's wheels cannot be had; install CUDA's toolkit and set CUDA_HOME, or name an index that has them with PIP_INDEX_URL"
        ))
    })
}

/// Names of functions that a C header declares, and those that its macros turn them into.
fn functions(header: &str) -> BTreeSet<&str> {
    let words = header.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let is_function =
        |word: &&str| word.strip_prefix("cu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()));
    words.filter(is_function).collect()
}

fn link(to: &str, from: &Path) -> Result {
    match symlink(to, from) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error(format!("cannot link {}: {error}", from.display())))
        }
        _ => Ok(()),
    }
}

fn executable(file: &Path) -> Result {
    fs::set_permissions(file, PermissionsExt::from_mode(0o755)).doing(format_args!("make {} a program", file.display()))
}

#[cfg(test)]
mod tests {
    use super::{Cap, Version, caps, driver, functions, older, version};

    #[test]
    fn cards_are_sorted_and_those_that_do_not_go_together_are_refused() {
        let read = |text: &str| text.split(',').map(str::parse::<Cap>).collect::<Result<Vec<_>, _>>();
        assert_eq!(caps(&read("90,8.9,80,80").unwrap()).unwrap(), [Cap(80), Cap(89), Cap(90)]);
        assert_eq!(caps(&read("90").unwrap()).unwrap(), [Cap(90)]);
        assert!(caps(&read("100,90").unwrap()).unwrap_err().0.contains("90 run on such cards alone"));
        for wrong in ["sm_90", "", "9", "9.0.1x", "-80"] {
            assert!(read(wrong).unwrap_err().contains("no compute capability"), "{wrong}");
        }
    }

    #[test]
    fn a_driver_that_is_too_old_is_told_of() {
        let said = "| NVIDIA-SMI 550.54.15  Driver Version: 550.54.15  CUDA Version: 12.4  |";
        assert_eq!(driver(said), Some(Version(12, 4)));
        assert_eq!(driver("No devices were found"), None);
        assert_eq!(version("13.0, V13.0.88"), Some(Version(13, 0)));
        let notice = older(Version(12, 4), Version(13, 0)).unwrap();
        assert!(notice.contains("up to 12.4") && notice.contains("update the driver"), "{notice}");
        assert_eq!(older(Version(13, 0), Version(13, 0)), None);
    }

    #[test]
    fn the_stub_has_what_the_header_names() {
        let header =
            "#define cuMemAlloc cuMemAlloc_v2\nCUresult CUDAAPI cuInit(unsigned int);\nCUdevice cuda; custom; __cuX";
        assert_eq!(functions(header).into_iter().collect::<Vec<_>>(), ["cuInit", "cuMemAlloc", "cuMemAlloc_v2"]);
    }
}
