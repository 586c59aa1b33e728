//! What a new plugin may be called: an id that hosts read, and a package that cargo builds. Knows no files.

use aihost_plugin_api::abi::rules::{NAME_BYTES, is_id};

use crate::domain::excerpt;

/// Whose a plugin is whose author named no vendor: a bare name is one of aihost's own.
const VENDOR: &str = "example";
/// What Rust keeps for itself, cargo for its folders, and the plugin's own dependencies.
const TAKEN: [&str; 68] = [
    "abstract",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "struct",
    "super",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
    "alloc",
    "core",
    "std",
    "test",
    "proc_macro",
    "build",
    "deps",
    "examples",
    "incremental",
    "serde",
    "serde_json",
    "schemars",
    "tracing",
    "abi_stable",
    "aihost",
    "aihost_plugin_api",
    "aihost_plugin_abi",
];

/// Bytes of a typed name that a sentence repeats.
const SHOWN_BYTES: usize = 100;

/// The name of a plugin in its forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PluginName {
    /// `vendor/name`
    pub(super) id: String,
    /// Of the package, and of its folder.
    pub(super) package: String,
}

impl PluginName {
    /// Reads `name` or `vendor/name`.
    ///
    /// # Errors
    /// A sentence that says what is wrong, with a name that would do where one is near.
    pub(super) fn parse(typed: &str) -> Result<Self, String> {
        let (vendor, name) = typed.rsplit_once('/').unwrap_or((VENDOR, typed));
        if name.is_empty() {
            return Err(format!("`{}` names no plugin; write `parrot`, or `vendor/parrot`", shown(typed)));
        }
        if let Some(why) = unfit(name) {
            let hint = better(name).map(|name| format!("; `{name}` would do")).unwrap_or_default();
            return Err(format!("`{}` cannot be the name of a plugin: {why}{hint}", shown(name)));
        }
        let id = format!("{vendor}/{name}");
        if !is_id(&id) {
            return Err(format!(
                "`{}` cannot be the vendor of a plugin: it begins with a-z or 0-9, and goes on with these, `-`, `_` and `.`",
                shown(vendor)
            ));
        }
        Ok(Self { id, package: name.to_owned() })
    }

    /// As the library is called.
    pub(super) fn library(&self) -> String {
        self.package.replace('-', "_")
    }
}

fn shown(typed: &str) -> String {
    excerpt(typed, SHOWN_BYTES)
}

/// Why neither cargo nor a host would take a name.
fn unfit(name: &str) -> Option<String> {
    let is_first = |c: char| c.is_ascii_lowercase();
    let is_next = |c: char| is_first(c) || c.is_ascii_digit() || matches!(c, '-' | '_');
    if name.len() > NAME_BYTES {
        return Some(format!("it has {} bytes, of at most {NAME_BYTES}", name.len()));
    }
    if !name.starts_with(is_first) {
        return Some("it is to begin with a letter from a to z".to_owned());
    }
    if let Some(other) = name.chars().find(|c| !is_next(*c)) {
        return Some(format!("{other:?} is none of a-z, 0-9, `-` and `_`"));
    }
    let library = name.replace('-', "_");
    TAKEN.contains(&library.as_str()).then(|| "Rust or cargo have another use for it".to_owned())
}

/// A name that would do, as near as can be.
fn better(name: &str) -> Option<String> {
    let lower: String = name.to_lowercase().chars().take(NAME_BYTES).collect();
    let plain: String = lower.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect();
    let plain = plain.trim_matches(['-', '_']);
    [
        plain.to_owned(),
        plain.trim_start_matches(|c: char| !c.is_ascii_lowercase()).to_owned(),
        format!("{plain}-plugin"),
    ]
    .into_iter()
    .find(|name| !name.starts_with('-') && unfit(name).is_none())
}

#[cfg(test)]
mod tests {
    use super::PluginName;

    #[test]
    fn names_are_ids_and_packages_or_refused_with_one_that_would_do() {
        for (typed, id, library) in [
            ("parrot", "example/parrot", "parrot"),
            ("acme/my-parrot_2", "acme/my-parrot_2", "my_parrot_2"),
            ("acme.org/p", "acme.org/p", "p"),
        ] {
            let name = PluginName::parse(typed).unwrap();
            assert_eq!((name.id.as_str(), name.library().as_str()), (id, library));
        }
        let long = "x".repeat(65);
        for (typed, wanted) in [
            ("", "names no plugin"),
            ("acme/", "names no plugin"),
            ("/", "names no plugin"),
            ("Parrot", "`parrot` would do"),
            ("My Parrot!", "`my-parrot` would do"),
            ("3d", "`d` would do"),
            ("42", "begin with a letter"),
            ("fn", "`fn-plugin` would do"),
            ("serde-json", "`serde-json-plugin` would do"),
            ("Self", "another"),
            ("test", "another use"),
            ("a.b", "`a-b` would do"),
            ("../parrot", "vendor"),
            ("a/b/c", "vendor"),
            ("/parrot", "vendor"),
            ("A/parrot", "vendor"),
            ("pärrot", "`p-rrot` would do"),
            ("-x", "`x` would do"),
            ("\u{1b}[2J", "begin with a letter"),
            (long.as_str(), "65 bytes"),
        ] {
            let error = PluginName::parse(typed).expect_err(typed);
            assert!(error.contains(wanted) || (typed == "Self" && error.contains("self-plugin")), "{typed}: {error}");
            assert!(!error.contains(['\n', '\u{1b}']), "{error:?}");
        }
    }
}
