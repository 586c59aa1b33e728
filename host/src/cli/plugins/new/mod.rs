//! `aihost plugins new`: a crate that is a plugin already, with the SDK beside it. It runs no cargo.

mod draft;
mod name;
mod sdk;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use aihost_plugin_api::abi::FINGERPRINT;
use clap::ValueEnum;

use self::draft::NewFile;
use self::name::PluginName;
use crate::cli::failure::CliError;
use crate::cli::{CommandContext, out};

/// The id that an example of the SDK has, up to its kind.
const EXAMPLE_ID: &str = "example/";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What it is called: `vendor/name`, or `name`.
    name: String,
    /// What it serves.
    #[arg(long, value_enum)]
    kind: TemplateKind,
    /// Use the SDK in this folder, `plugin-api` of a clone of aihost, instead of a copy of what this program was built with.
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
    /// The folder to make. Default: one of its name, here.
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
}

/// Kinds that there is an example of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TemplateKind {
    /// A prompt or a conversation in, text out.
    Text,
    /// A description in, an image out.
    Image,
    /// A description in, music or sound out.
    Audio,
    /// Texts in, a vector or a score for each out.
    Embedding,
    /// An HTTP request below an endpoint of its own in, any answer out.
    Custom,
    /// Starts a server of its own, to which requests are passed on.
    Upstream,
}

impl TemplateKind {
    /// As the SDK names it, and what it is in a few words.
    fn described(self) -> (&'static str, &'static str) {
        match self {
            Self::Text => ("text", "A text model"),
            Self::Image => ("image", "An image model"),
            Self::Audio => ("audio", "An audio model"),
            Self::Embedding => ("embedding", "An embedding model"),
            Self::Custom => ("custom", "A model of a kind of its own"),
            Self::Upstream => ("upstream", "An engine that speaks HTTP itself"),
        }
    }

    /// What an entry of models.yaml says of it beside its plugin.
    fn entry(self, name: &str) -> String {
        match self {
            Self::Custom | Self::Upstream => format!("type: custom, endpoint: /v1/{name}"),
            _ => format!("type: {}", self.described().0),
        }
    }
}

pub(super) fn run(context: &CommandContext, arguments: &Arguments) -> Result<(), CliError> {
    let name = PluginName::parse(&arguments.name).map_err(CliError::usage)?;
    let sdk = arguments.sdk.as_deref().map(|folder| sdk_folder(&context.env.current_dir(), folder)).transpose()?;
    let files = crate_files(&name, arguments.kind, sdk.as_deref())?;
    let folder = arguments.path.clone().unwrap_or_else(|| PathBuf::from(&name.package));
    let place = context.env.current_dir().join(&folder);
    draft::create(&place, &files).map_err(|error| unwritten(&folder, &error))?;
    out::line(&folder.display().to_string())?;
    if arguments.path.is_none() && !arguments.name.contains('/') {
        out::note(&format!("its id is `{}`: name your vendor in `export_plugin!` before others use it", name.id));
    }
    out::note("next:");
    out::note(&format!("  cd {}", quoted(&folder)));
    out::note("  cargo test");
    out::note("  cargo build --release");
    out::note(&format!("  aihost plugins run target/release/lib{}.so", name.library()));
    Ok(())
}

/// Every file of the crate.
fn crate_files(name: &PluginName, kind: TemplateKind, sdk: Option<&Path>) -> Result<Vec<NewFile>, CliError> {
    let (kind_name, description) = kind.described();
    let example = format!("examples/{kind_name}.rs");
    let source =
        sdk::text(&example).ok_or_else(|| CliError::failed(format!("this program was built without {example}")))?;
    let (dependency, origin) = match sdk {
        None => (format!("vendor/{}", sdk::FOLDER), "`vendor/` is the SDK of the host that made this."),
        Some(folder) => (folder.display().to_string(), "Its SDK is the one that Cargo.toml names."),
    };
    let library = name.library();
    let entry = format!("{}: {{{}, plugin: {}}}", name.package, kind.entry(&name.package), name.id);
    let values = [
        ("{name}", name.package.as_str()),
        ("{id}", &name.id),
        ("{library}", &library),
        ("{entry}", &entry),
        ("{description}", description),
        ("{rust}", sdk::rust_version()),
        ("{origin}", origin),
        ("{sdk}", &toml_text(&dependency)),
    ];
    let filled = |template: &str| {
        values.iter().fold(template.to_owned(), |text, (place, value)| text.replace(place, value)).into_bytes()
    };
    let source = source.replacen(&format!("\"{EXAMPLE_ID}{kind_name}\""), &format!("\"{}\"", name.id), 1);
    let mut files: Vec<NewFile> = vec![
        ("Cargo.toml".to_owned(), filled(include_str!("template/manifest.toml")).into()),
        ("README.md".to_owned(), filled(include_str!("template/README.md")).into()),
        (".gitignore".to_owned(), include_bytes!("template/gitignore").into()),
        ("rustfmt.toml".to_owned(), include_bytes!("template/rustfmt.toml").into()),
        ("src/lib.rs".to_owned(), source.into_bytes().into()),
    ];
    if sdk.is_none() {
        let packed = sdk::FILES.iter().map(|(path, bytes)| (format!("vendor/{}/{path}", sdk::FOLDER), (*bytes).into()));
        files.extend(packed);
    }
    Ok(files)
}

/// A string of TOML, whose escapes are those of JSON.
fn toml_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+@".contains(c);
    if text.chars().all(is_plain) && !text.starts_with('-') {
        text
    } else {
        format!("-- '{}'", text.replace('\'', r"'\''"))
    }
}

/// The SDK that was named, from the root: Cargo.toml means it wherever it lies.
fn sdk_folder(here: &Path, named: &Path) -> Result<PathBuf, CliError> {
    let shown = named.display();
    let holds =
        |folder: &Path| std::fs::read_to_string(folder.join("Cargo.toml")).is_ok_and(|text| sdk::is_manifest(&text));
    let folder = here.join(named);
    if !holds(&folder) {
        let error = CliError::usage(format!("{shown} is not the SDK: it has no Cargo.toml of `aihost-plugin-api`"));
        return Err(if holds(&folder.join("plugin-api")) {
            error.hint(format!("did you mean {}?", named.join("plugin-api").display()))
        } else {
            error
                .hint("name the folder `plugin-api` of a clone of aihost; without --sdk a copy comes with this program")
        });
    }
    let folder = folder.canonicalize().map_err(|error| CliError::failed(format!("{shown} cannot be read: {error}")))?;
    if folder.to_str().is_none_or(|text| text.contains(char::is_control)) {
        return Err(CliError::usage(format!("{shown} cannot be written into a Cargo.toml; give it a plainer name")));
    }
    let fingerprint = std::fs::read(folder.join("abi/src/fingerprint.bin")).unwrap_or_default();
    if fingerprint != FINGERPRINT {
        out::note(&format!(
            "note: the SDK in {shown} has another layout than this host, which will refuse the plugin: take the SDK of this host"
        ));
    }
    Ok(folder)
}

fn unwritten(folder: &Path, error: &std::io::Error) -> CliError {
    let shown = folder.display();
    match error.kind() {
        ErrorKind::AlreadyExists => CliError::failed(format!("{shown} is there already and is left as it is"))
            .hint("take another name, or another folder: `--path DIR`"),
        ErrorKind::NotFound => CliError::failed(format!("{shown} cannot be made: there is no folder to make it in"))
            .hint("make that folder first, or name another: `--path DIR`"),
        _ => CliError::failed(format!("{shown} cannot be made, and nothing of it is left: {error}"))
            .hint("name a folder that you may write: `--path DIR`"),
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    fn text_of<'a>(files: &'a [NewFile], path: &str) -> &'a str {
        let (_, bytes) = files.iter().find(|(name, _)| name == path).unwrap_or_else(|| panic!("{path} is there"));
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_crate_of_each_kind_is_short_has_its_id_and_the_sdk_beside_it() {
        let name = PluginName::parse("acme/my-parrot").unwrap();
        for kind in TemplateKind::value_variants() {
            let files = crate_files(&name, *kind, None).unwrap();
            let source = text_of(&files, "src/lib.rs");
            assert!(source.lines().count() <= 60, "{kind:?} has {} lines", source.lines().count());
            assert!(source.contains("#![forbid(unsafe_code)]"));
            assert!(source.contains(r#"id: "acme/my-parrot""#) && !source.contains(EXAMPLE_ID), "{kind:?}");
            for path in ["Cargo.toml", "README.md"] {
                let text = text_of(&files, path);
                let places = ["{name}", "{id}", "{library}", "{entry}", "{description}", "{rust}", "{origin}", "{sdk}"];
                assert!(!places.iter().any(|place| text.contains(place)), "{path}: {text}");
            }
            assert!(text_of(&files, "README.md").contains("aihost plugins run target/release/libmy_parrot.so"));
            assert!(text_of(&files, "Cargo.toml").contains(r#"path = "vendor/aihost-plugin-api""#));
            assert!(files.iter().any(|(path, _)| path == "vendor/aihost-plugin-api/abi/src/fingerprint.bin"));
        }
    }

    #[test]
    fn the_sdk_can_be_another_which_is_named_from_the_root() {
        let here = tempfile::tempdir().unwrap();
        let sdk = here.path().join("clone \"of\" aihost/plugin-api");
        std::fs::create_dir_all(&sdk).unwrap();
        let near = sdk_folder(here.path(), Path::new("clone \"of\" aihost")).unwrap_err();
        assert!(near.to_string().contains("is not the SDK"), "{near}");
        std::fs::write(sdk.join("Cargo.toml"), "[package]\nname = \"aihost-plugin-api\"\n").unwrap();
        let near = sdk_folder(here.path(), Path::new("clone \"of\" aihost")).unwrap_err();
        assert!(format!("{near:?}").contains("did you mean"), "{near:?}");
        let found = sdk_folder(here.path(), Path::new("clone \"of\" aihost/plugin-api")).unwrap();
        let files = crate_files(&PluginName::parse("p").unwrap(), TemplateKind::Text, Some(&found)).unwrap();
        assert!(text_of(&files, "Cargo.toml").contains(r#"clone \"of\" aihost/plugin-api" }"#));
        assert!(files.iter().all(|(path, _)| !path.starts_with("vendor")));
    }

    #[test]
    fn what_is_typed_next_can_be_pasted() {
        for (path, wanted) in [("a/b", "a/b"), ("it's", r"-- 'it'\''s'"), ("-x", "-- '-x'"), ("a b", "-- 'a b'")] {
            assert_eq!(quoted(Path::new(path)), wanted);
        }
    }
}
