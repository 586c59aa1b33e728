//! The models.yaml that is changed by a command: what it says now, and what it will say, compared by the host's own reader before
//! anything is written. It is replaced at once, or not at all.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use super::edit;
use crate::cli::CommandContext;
use crate::cli::failure::CliError;
use crate::config::{self, Config, ConfigError, Env, Selection};

/// What to do where the text cannot be changed by a command.
const BY_HAND: &str = "edit it by hand: `--dry-run` prints an entry, and `aihost check` says whether the file is right";

/// A models.yaml as it is.
pub(super) struct Target {
    pub(super) file: PathBuf,
    pub(super) config: Config,
    text: String,
    env: Env,
}

/// What it is to say instead.
pub(super) struct Change<'a> {
    target: &'a Target,
    text: String,
}

impl Target {
    /// The file that commands use, read and checked.
    ///
    /// # Errors
    /// There is none, or something in it is wrong.
    pub(super) fn find(context: &CommandContext) -> Result<Self, CliError> {
        let file = config::find_file(context.config.as_deref(), &context.env)?;
        let text = config::read_file(&file)?;
        let config = config::parse(&text, &file, &selection(), &context.env)?;
        Ok(Self { file, config, text, env: context.env.clone() })
    }

    /// The same with an entry more.
    ///
    /// # Errors
    /// The entry is refused, or the text is not one that can be added to.
    pub(super) fn with(&self, name: &str, entry: &str) -> Result<Change<'_>, CliError> {
        let alone = config::parse(&format!("models:\n{entry}"), &self.file, &selection(), &self.env);
        if let Err(error) = alone.map(drop).map_err(|error| told(&error)) {
            return Err(CliError::failed(format!("the entry is refused: {error}"))
                .hint("name it with `--name NAME`, or write it by hand: `--dry-run` prints what can be told of it"));
        }
        let text = edit::insert(&self.text, entry).map_err(|why| self.unchanged(&why))?;
        let mut after = self.read(&text)?;
        let is_added = after.models.remove(name).is_some() && after == self.config;
        self.change(text, is_added)
    }

    /// The same with an entry less.
    ///
    /// # Errors
    /// The text is not one that it can be taken out of.
    pub(super) fn without(&self, name: &str) -> Result<Change<'_>, CliError> {
        let text = edit::remove(&self.text, name).map_err(|why| self.unchanged(&why))?;
        let (after, mut before) = (self.read(&text)?, self.config.clone());
        let is_removed = before.models.remove(name).is_some() && after == before;
        self.change(text, is_removed)
    }

    fn read(&self, text: &str) -> Result<Config, CliError> {
        config::parse(text, &self.file, &selection(), &self.env)
            .map_err(|error| self.unchanged(&format!("what would come of it is wrong ({})", told(&error))))
    }

    fn change(&self, text: String, is_right: bool) -> Result<Change<'_>, CliError> {
        match is_right {
            true => Ok(Change { target: self, text }),
            false => Err(self.unchanged("it would say something else of what is in it already")),
        }
    }

    fn unchanged(&self, why: &str) -> CliError {
        CliError::failed(format!("{} is left as it is: {why}", self.file.display())).hint(BY_HAND)
    }
}

impl Change<'_> {
    /// Replaces the file, with its permissions, where a link leads to it too.
    ///
    /// # Errors
    /// It cannot be written, or was changed meanwhile.
    pub(super) fn write(&self) -> Result<(), CliError> {
        let shown = self.target.file.display();
        let failed = |error: io::Error| {
            CliError::failed(format!("{shown} cannot be written: {error}"))
                .hint("use a file in a folder that you may write, with `--config FILE`")
        };
        let file = self.target.file.canonicalize().map_err(failed)?;
        let found = fs::metadata(&file).map_err(failed)?;
        if !found.is_file() {
            return Err(CliError::failed(format!("{shown} is no file that can be written"))
                .hint("name one with `--config FILE`"));
        }
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let fresh = file.with_file_name(name);
        let written = self.fill(&fresh, found.permissions());
        let replaced =
            written.map_err(failed).and_then(|()| {
                // Who edited it meanwhile is not to lose that.
                match config::read_file(&file) {
                    Ok(now) if now == self.target.text => fs::rename(&fresh, &file).map_err(failed),
                    _ => Err(CliError::failed(format!("{shown} was changed meanwhile, and is left as it is"))
                        .hint("try again")),
                }
            });
        if replaced.is_err() {
            // It may not even have been made.
            let _ = fs::remove_file(&fresh);
        }
        replaced
    }

    fn fill(&self, fresh: &std::path::Path, permissions: fs::Permissions) -> io::Result<()> {
        // Its keys are nobody else's, also before it has its permissions.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(fresh)?;
        file.write_all(self.text.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(permissions.mode()))?;
        file.sync_all()
    }
}

fn selection() -> Selection {
    Selection::default()
}

/// What is wrong, without the place in a text that is not there.
fn told(error: &ConfigError) -> String {
    let problems = error.problems.iter().map(|problem| problem.to_string().replace("\nhint: ", "; "));
    problems.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const TEXT: &str = "# mine\nmodels:\n  a: {type: text, plugin: p}\n";
    const ENTRY: &str = "  b:\n    type: text\n    plugin: p\n";

    fn target(folder: &Path, text: &str) -> Target {
        let file = folder.join("models.yaml");
        fs::write(&file, text).unwrap();
        let env = Env::with(folder, []);
        Target::find(&CommandContext { env, config: Some(file) }).unwrap()
    }

    fn message(error: CliError) -> String {
        match error {
            CliError::Failed { message, hint } => format!("{message}; {}", hint.unwrap_or_default()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_is_replaced_with_its_permissions_and_through_links() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real.yaml");
        fs::write(&real, TEXT).unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        let link = folder.path().join("models.yaml");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let context = CommandContext { env: Env::with(folder.path(), []), config: Some(link.clone()) };
        Target::find(&context).unwrap().with("b", ENTRY).unwrap().write().unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), format!("{TEXT}{ENTRY}"));
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
        Target::find(&context).unwrap().without("b").unwrap().write().unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), TEXT);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn who_edited_it_meanwhile_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let target = target(folder.path(), TEXT);
        let change = target.with("b", ENTRY).unwrap();
        fs::write(&target.file, "# edited\n").unwrap();
        assert!(message(change.write().unwrap_err()).contains("was changed meanwhile"));
        assert_eq!(fs::read_to_string(&target.file).unwrap(), "# edited\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_would_not_be_right_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let target = self::target(folder.path(), "models:\n  a: &a {type: text, plugin: p}\n  b: *a\n");
        let refused = target.with("c", "  c:\n    type: txt\n    plugin: p\n").map(drop).unwrap_err();
        assert!(message(refused).contains("the entry is refused"));
        let refused = target.with("a", "  a:\n    type: text\n    plugin: q\n").map(drop).unwrap_err();
        assert!(message(refused).contains("is left as it is"));
        let needed = target.without("a").map(drop).unwrap_err();
        assert!(message(needed).contains("is left as it is: what would come of it is wrong"));
    }
}
