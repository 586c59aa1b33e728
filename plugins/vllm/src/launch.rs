//! The command line of an engine, its environment and its folder, once it is known what their names stand for. Nothing is
//! started here, and what cannot be started is told in one sentence.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use aihost_plugin_api::{Error, ErrorKind, LoadRequest, Result};

use super::files;
use super::kept::Kept;
use super::known::Known;
use super::options::{Options, Program};
use super::template::Values;

/// Most bytes of a command line that are shown.
const SHOWN_BYTES: usize = 400;
/// A service's folder of things that it shares with others.
const SHARED_FOLDER: &str = "core";

/// What is to be started.
#[derive(Debug)]
pub(crate) struct Launch {
    program: PathBuf,
    arguments: Vec<OsString>,
    variables: BTreeMap<OsString, OsString>,
    folder: Option<PathBuf>,
    /// The port that it was told.
    pub(crate) port: u16,
    /// The model's name that it was told.
    pub(crate) name: String,
}

impl Launch {
    /// From an entry's options, in an environment if it has one. `kept`: what there is of the model from before.
    pub(crate) fn new(
        options: &Options,
        load: &LoadRequest,
        environment: Option<&Path>,
        port: u16,
        kept: Option<&Kept>,
    ) -> Result<Self> {
        let cache = kept.map(|kept| kept.folder().to_path_buf());
        let values = Values {
            port,
            device: load.device.clone(),
            memory: load.granted,
            device_memory: load.device_memory,
            weights: files::bytes(load),
            // A host that does not say asks for it by any name.
            name: if load.name.is_empty() { "model".to_owned() } else { load.name.clone() },
            model_path: files::path(load, cache.as_deref()).map(|path| path.display().to_string()),
            slots: cache.clone().filter(|_| options.keep_slots),
            cache,
        };
        let filled = |why: String| Error::new(ErrorKind::MissingFile, why);
        let folder = options.folder().map(Path::to_path_buf);
        if let Some(folder) = folder.as_deref().filter(|folder| !folder.is_dir()) {
            return Err(missing(format!("there is no folder {}, which `working_dir` names", folder.display())));
        }
        let mut variables = base(port, environment);
        let program = options.program().map_err(Error::internal)?;
        if let Program::Script(script) = &program {
            variables.insert("AIHOST_PORT".into(), port.to_string().into());
            variables.insert("PYTHONUNBUFFERED".into(), "1".into());
            variables.insert("PYTHONPATH".into(), python_path(script, folder.as_deref()));
        }
        if let Program::Known(known, _) = &program {
            let own = known.variables(&values, options.sleep.is_some()).map_err(filled)?;
            variables.extend(own.into_iter().map(|(name, value)| (name.into(), value.into())));
            if let Some(card) = card(&load.device, std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref()) {
                variables.insert("CUDA_VISIBLE_DEVICES".into(), card.into());
            }
        }
        for (name, value) in options.variables().map_err(Error::internal)? {
            variables.insert(name.into(), value.fill(&values).map_err(filled)?.into());
        }
        let (program, arguments) = match program {
            Program::Script(script) => {
                let python = environment.map_or_else(|| options.python.clone().into(), |made| made.join("bin/python"));
                (python, vec![script.into_os_string()])
            }
            Program::Known(known, args) => {
                let arguments = known.arguments(&values, &args, options.sleep.is_some()).map_err(filled)?;
                (known_program(options, known, &variables)?, arguments)
            }
            Program::Command(words) => {
                let words: Result<Vec<_>, _> = words.iter().map(|word| word.fill(&values)).collect();
                let mut words = words.map_err(filled)?.into_iter();
                let program = words.next().unwrap_or_default();
                let path = variables.get(OsStr::new("PATH")).cloned().unwrap_or_default();
                (find(&program, &path, folder.as_deref())?, words.map(OsString::from).collect())
            }
        };
        Ok(Self { program, arguments, variables, folder, port, name: values.name })
    }

    /// As it is started. Its group is this process's, which its host ends with it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).envs(&self.variables);
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command
    }

    /// The program, for sentences.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// The whole line, for the log.
    pub(crate) fn shown(&self) -> String {
        let words = self.arguments.iter().map(|word| word.to_string_lossy().into_owned());
        let mut line = std::iter::once(self.program.display().to_string()).chain(words).collect::<Vec<_>>().join(" ");
        line.truncate(line.floor_char_boundary(SHOWN_BYTES));
        line
    }
}

/// The program of an engine that is known by name.
fn known_program(options: &Options, known: &Known, variables: &BTreeMap<OsString, OsString>) -> Result<PathBuf> {
    let path = variables.get(OsStr::new("PATH")).cloned().unwrap_or_default();
    let program = options.binary.as_deref().unwrap_or(known.name);
    find(program, &path, options.folder())
        .map_err(|e| Error::new(e.kind(), format!("{}; {}", e.message(), known.install)))
}

/// The only card that an engine on this device is to see, as the driver knows it: the host counts those that it sees itself.
fn card(device: &str, visible: Option<&str>) -> Option<String> {
    let number: usize = device.strip_prefix("cuda:")?.parse().ok()?;
    let listed = visible.map(|visible| visible.split(',').map(str::trim).nth(number).unwrap_or_default().to_owned());
    Some(listed.filter(|card| !card.is_empty()).unwrap_or_else(|| number.to_string()))
}

/// What every engine is told.
fn base(port: u16, environment: Option<&Path>) -> BTreeMap<OsString, OsString> {
    let mut variables = BTreeMap::from([(OsString::from("PORT"), OsString::from(port.to_string()))]);
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(environment) = environment {
        let folders = std::iter::once(environment.join("bin")).chain(std::env::split_paths(&path));
        // A folder with a colon in its name cannot be said; it is left out with the rest.
        path = std::env::join_paths(folders.collect::<Vec<_>>()).unwrap_or(path);
        variables.insert("VIRTUAL_ENV".into(), environment.into());
    }
    variables.insert("PATH".into(), path);
    variables
}

/// Where Python looks after the script's own folder and before what is installed: the folders above it that have a `core/`,
/// nearest first, up to the one that the script and the working folder share.
fn python_path(script: &Path, working: Option<&Path>) -> OsString {
    let shared = |folder: &Path| working.is_some_and(|working| working.starts_with(folder));
    let mut folders = Vec::new();
    for folder in script.ancestors().skip(1).filter(|folder| folder.parent().is_some()) {
        if folder.join(SHARED_FOLDER).is_dir() {
            folders.push(folder.to_path_buf());
        }
        if shared(folder) {
            break;
        }
    }
    let before = std::env::var_os("PYTHONPATH").unwrap_or_default();
    folders.extend(std::env::split_paths(&before).filter(|path| !path.as_os_str().is_empty()));
    std::env::join_paths(folders).unwrap_or_default()
}

/// Whether what is to be started can be, as far as that needs no environment.
pub(crate) fn check(options: &Options) -> Result<()> {
    match options.program().map_err(Error::internal)? {
        Program::Script(script) => readable(&script),
        Program::Command(_) | Program::Known(..) => Ok(()),
    }
}

fn readable(script: &Path) -> Result<()> {
    let opened = File::open(script).and_then(|file| file.metadata());
    let shown = script.display();
    match opened {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err(missing(format!("{shown} is no file; `service_script` names a Python script"))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(missing(format!("there is no {shown}; correct `service_script`, or put the script there")))
        }
        Err(e) => Err(missing(format!("{shown} cannot be read ({e}); let the host's user read it"))),
    }
}

/// The program that a word names, as a shell finds it.
fn find(program: &str, path: &OsStr, folder: Option<&Path>) -> Result<PathBuf> {
    if program.contains('/') {
        let found = folder.map_or_else(|| PathBuf::from(program), |folder| folder.join(program));
        return match fs::metadata(&found) {
            Ok(metadata) if is_program(&metadata) => Ok(found),
            Ok(_) => Err(missing(format!(
                "{} is not executable; make it so (`chmod +x`), or name what runs it first in `command`",
                found.display()
            ))),
            Err(e) => Err(missing(format!("{} cannot be started ({e}); correct `command`", found.display()))),
        };
    }
    let candidates = std::env::split_paths(path).map(|folder| folder.join(program));
    let mut programs = candidates.filter(|found| fs::metadata(found).is_ok_and(|metadata| is_program(&metadata)));
    programs.next().ok_or_else(|| {
        let shown: String = program.chars().take(100).collect();
        missing(format!(
            "there is no program `{}` in the PATH of the host; install it, or write its whole path in `command`",
            shown.escape_debug()
        ))
    })
}

fn is_program(metadata: &fs::Metadata) -> bool {
    metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
}

fn missing(why: String) -> Error {
    Error::new(ErrorKind::MissingFile, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(options: serde_json::Value, environment: Option<&Path>) -> Result<Launch> {
        let options: Options = serde_json::from_value(options).unwrap();
        let files = BTreeMap::from([("model".to_owned(), PathBuf::from("/m/x.gguf"))]);
        Launch::new(&options, &LoadRequest::new("cuda:1", files).granted(7), environment, 81, None)
    }

    #[test]
    fn an_engine_sees_the_card_that_is_meant() {
        for (device, visible, wanted) in [
            ("cuda:1", None, Some("1")),
            ("cuda:1", Some("4, GPU-abc"), Some("GPU-abc")),
            ("cuda:2", Some("4"), Some("2")),
            ("cpu", Some("4"), None),
        ] {
            assert_eq!(card(device, visible).as_deref(), wanted, "{device} of {visible:?}");
        }
    }

    fn variable<'a>(launch: &'a Launch, name: &str) -> Option<&'a str> {
        launch.variables.get(OsStr::new(name))?.to_str()
    }

    #[test]
    fn a_command_is_told_what_its_names_stand_for() {
        let options = serde_json::json!({
            "command": "sh -c '{model_path} {{}}' {device}", "env": {"LIMIT": "{memory}", "PORT": "{port}0"}
        });
        let made = launch(options, Some(Path::new("/venv"))).unwrap();
        assert_eq!(made.arguments, ["-c", "/m/x.gguf {}", "cuda:1"].map(OsString::from));
        assert_eq!((variable(&made, "LIMIT"), variable(&made, "PORT")), (Some("7"), Some("810")));
        assert!(variable(&made, "PATH").unwrap().starts_with("/venv/bin:"));
        assert_eq!(variable(&made, "VIRTUAL_ENV"), Some("/venv"));
    }

    #[test]
    fn a_core_beside_a_script_or_above_it_comes_first_and_none_from_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for made in ["tree/models/a/core", "tree/core", "tree/model-orchestrator", "core"] {
            fs::create_dir_all(root.join(made)).unwrap();
        }
        let script = root.join("tree/models/a/server.py");
        fs::write(&script, "").unwrap();
        let python_path = |working: &str| {
            let options = serde_json::json!({"service_script": script, "working_dir": root.join(working)});
            let made = launch(options, Some(Path::new("/venv"))).unwrap();
            assert_eq!((variable(&made, "PORT"), variable(&made, "AIHOST_PORT")), (Some("81"), Some("81")));
            variable(&made, "PYTHONPATH").unwrap().to_owned()
        };
        let shown =
            |folders: &[&str]| folders.iter().map(|f| root.join(f).display().to_string()).collect::<Vec<_>>().join(":");
        assert_eq!(python_path("tree/model-orchestrator"), shown(&["tree/models/a", "tree"]));
        assert_eq!(python_path("tree"), shown(&["tree/models/a", "tree"]));
        assert_eq!(python_path("tree/models/a"), shown(&["tree/models/a"]));
        assert_eq!(python_path("."), shown(&["tree/models/a", "tree", "."]).trim_end_matches("/.").to_owned());
    }

    #[test]
    fn what_cannot_be_started_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plain");
        fs::write(&file, "").unwrap();
        for (options, words) in [
            (
                serde_json::json!({"service_script": "/nowhere/server.py", "working_dir": "/"}),
                "there is no /nowhere/server.py",
            ),
            (serde_json::json!({"service_script": "/usr", "working_dir": "/"}), "/usr is no file"),
            (serde_json::json!({"command": ["no-such-program"]}), "there is no program `no-such-program`"),
            (serde_json::json!({"command": [file]}), "is not executable"),
            (serde_json::json!({"command": ["/nowhere/x"]}), "/nowhere/x cannot be started"),
            (serde_json::json!({"command": ["./plain"], "working_dir": folder.path()}), "is not executable"),
            (serde_json::json!({"command": ["sh"], "working_dir": "/nowhere"}), "there is no folder /nowhere"),
        ] {
            let typed: Options = serde_json::from_value(options.clone()).unwrap();
            let error = check(&typed).and_then(|()| launch(options.clone(), None)).expect_err(&options.to_string());
            assert!(error.message().contains(words), "{error}");
        }
        let options: Options = serde_json::from_value(serde_json::json!({"command": "sh {model_path}"})).unwrap();
        let error = Launch::new(&options, &LoadRequest::new("cpu", BTreeMap::new()), None, 81, None).unwrap_err();
        assert!(error.message().contains("no file `model`"), "{error}");
    }
}
