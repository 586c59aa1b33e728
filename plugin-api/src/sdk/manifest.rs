//! The manifest as [`export_plugin!`](crate::export_plugin) states it: checked, and written as JSON, while the plugin is compiled.

use crate::abi::rules::{NAME_BYTES, NAMES_MAX, is_id, is_name, is_prose};

/// What the export macro knows of a plugin. The fields are those of [`Manifest`](crate::abi::Manifest).
#[derive(Clone, Copy, Debug)]
pub struct ManifestSource<'a> {
    pub id: &'a str,
    pub version: &'a str,
    pub authors: &'a str,
    pub license: &'a str,
    pub description: &'a str,
    pub kinds: &'a [&'a str],
    pub formats: &'a [&'a str],
    pub devices: &'a [&'a str],
    pub max_concurrency: u32,
    pub parks: bool,
    pub memory_static: bool,
    pub prepares: bool,
    pub permissions: &'a [&'a str],
    pub grammar: bool,
    pub features: &'a [&'a str],
}

/// Version of this SDK.
pub const SDK_VERSION: &str = env!("CARGO_PKG_VERSION");
/// What this SDK speaks beyond the layout.
pub const FEATURES: &[&str] = &["blocks", "submit", "details", "metrics", "tokens"];
/// The same, of a plugin that keeps an answer to a form.
const FEATURES_WITH_GRAMMAR: &[&str] = &["blocks", "submit", "details", "metrics", "tokens", "grammar"];

impl<'a> ManifestSource<'a> {
    /// What the macro's optional keys are when they are left out.
    pub const DEFAULT: Self = Self {
        id: "",
        version: "",
        authors: "",
        license: "",
        description: "",
        kinds: &[],
        formats: &[],
        devices: &[],
        max_concurrency: 1,
        parks: false,
        memory_static: false,
        prepares: false,
        permissions: &[],
        grammar: false,
        features: FEATURES,
    };

    /// The same manifest, which a host will accept.
    ///
    /// # Panics
    /// If it would not: in a constant, that is an error of compilation.
    #[must_use]
    pub const fn checked(self) -> Self {
        assert!(
            is_id(self.id),
            "`id` is `name` or `vendor/name` in a-z, 0-9, `-`, `_`, `.`, a letter or digit first, of at most 128 bytes"
        );
        assert!(!self.kinds.is_empty(), "`kinds` names at least one kind, such as \"text\"");
        assert!(are_names(self.kinds), "`kinds` are at most 32 names in a-z, 0-9, `-`, `_`, `.`, of at most 64 bytes");
        assert!(
            are_names(self.devices),
            "`devices` are at most 32 names in a-z, 0-9, `-`, `_`, `.`, of at most 64 bytes"
        );
        assert!(
            !self.devices.is_empty() && are_devices(self.devices),
            "`devices` names what it runs on: \"cpu\", \"cuda\" or both"
        );
        assert!(
            are_names(self.formats),
            "`formats` are at most 32 names in a-z, 0-9, `-`, `_`, `.`, of at most 64 bytes"
        );
        assert!(
            are_names(self.permissions),
            "`permissions` are at most 32 names in a-z, 0-9, `-`, `_`, `.`, of at most 64 bytes"
        );
        assert!(self.max_concurrency > 0, "`max_concurrency` is at least 1");
        assert!(
            self.version.len() <= NAME_BYTES && is_prose(self.version),
            "the version in Cargo.toml is longer than 64 bytes"
        );
        assert!(
            is_prose(self.authors),
            "`authors` in Cargo.toml are to be one line of printable text, of at most 4096 bytes"
        );
        assert!(
            is_prose(self.license),
            "`license` in Cargo.toml is to be one line of printable text, of at most 4096 bytes"
        );
        assert!(
            is_prose(self.description),
            "`description` in Cargo.toml is to be one line of printable text, of at most 4096 bytes"
        );
        assert!(
            !self.grammar || cfg!(feature = "grammar"),
            "`grammar` needs the feature `grammar` of aihost-plugin-api, in Cargo.toml"
        );
        self
    }

    /// The same manifest, of a plugin that serves this kind.
    ///
    /// # Panics
    /// If it names others: in a constant, that is an error of compilation.
    #[must_use]
    pub const fn of_kind(mut self, kind: &'a &'a str) -> Self {
        assert!(
            self.kinds.is_empty() || (self.kinds.len() == 1 && is_same(self.kinds[0], kind)),
            "`kinds` is not what the engine's `Task` serves; leave it out"
        );
        self.kinds = std::slice::from_ref(kind);
        self
    }

    /// Bytes of its JSON.
    pub const fn json_bytes(&self) -> usize {
        self.write(Json::<0>::new()).len
    }

    /// Its JSON, cut or padded with zeros to `N` bytes, which are to be [`json_bytes`](Self::json_bytes).
    pub const fn json<const N: usize>(&self) -> [u8; N] {
        self.write(Json::new()).bytes
    }

    const fn write<const N: usize>(&self, mut out: Json<N>) -> Json<N> {
        out.raw("{\"id\":");
        out.text(self.id);
        out.raw(",\"version\":");
        out.text(self.version);
        out.raw(",\"authors\":");
        out.text(self.authors);
        out.raw(",\"license\":");
        out.text(self.license);
        out.raw(",\"description\":");
        out.text(self.description);
        out.raw(",\"kinds\":");
        out.texts(self.kinds);
        out.raw(",\"formats\":");
        out.texts(self.formats);
        out.raw(",\"devices\":");
        out.texts(self.devices);
        out.raw(",\"max_concurrency\":");
        out.number(self.max_concurrency);
        out.raw(",\"parks\":");
        out.raw(if self.parks { "true" } else { "false" });
        out.raw(",\"memory_static\":");
        out.raw(if self.memory_static { "true" } else { "false" });
        out.raw(",\"prepares\":");
        out.raw(if self.prepares { "true" } else { "false" });
        out.raw(",\"permissions\":");
        out.texts(self.permissions);
        out.raw(",\"features\":");
        out.texts(if self.grammar { FEATURES_WITH_GRAMMAR } else { self.features });
        out.raw("}");
        out
    }
}

const fn is_same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len() && i == b.len()
}

/// Whether they are kinds of devices that hosts of this SDK have.
const fn are_devices(texts: &[&str]) -> bool {
    let mut i = 0;
    while i < texts.len() {
        if !is_same(texts[i], "cpu") && !is_same(texts[i], "cuda") {
            return false;
        }
        i += 1;
    }
    true
}

const fn are_names(texts: &[&str]) -> bool {
    let mut i = 0;
    while i < texts.len() {
        if !is_name(texts[i]) {
            return false;
        }
        i += 1;
    }
    texts.len() <= NAMES_MAX
}

/// JSON that is written in a constant: the first `N` bytes, and how many there were.
struct Json<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Json<N> {
    const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    const fn byte(&mut self, byte: u8) {
        if self.len < N {
            self.bytes[self.len] = byte;
        }
        self.len += 1;
    }

    const fn raw(&mut self, text: &str) {
        let bytes = text.as_bytes();
        let mut i = 0;
        while i < bytes.len() {
            self.byte(bytes[i]);
            i += 1;
        }
    }

    /// A string. A control character, which no checked text has, would need more than a backslash.
    const fn text(&mut self, text: &str) {
        let bytes = text.as_bytes();
        self.byte(b'"');
        let mut i = 0;
        while i < bytes.len() {
            if matches!(bytes[i], b'"' | b'\\') {
                self.byte(b'\\');
            }
            self.byte(bytes[i]);
            i += 1;
        }
        self.byte(b'"');
    }

    const fn texts(&mut self, texts: &[&str]) {
        self.byte(b'[');
        let mut i = 0;
        while i < texts.len() {
            if i > 0 {
                self.byte(b',');
            }
            self.text(texts[i]);
            i += 1;
        }
        self.byte(b']');
    }

    const fn number(&mut self, number: u32) {
        if number >= 10 {
            self.number(number / 10);
        }
        self.byte(b'0' + (number % 10) as u8);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::ManifestSource;
    use crate::abi::Manifest;

    const GOOD: ManifestSource<'static> = ManifestSource {
        id: "vendor/name",
        version: "1.2.3-rc.1",
        authors: "Zoë \"Z\" <z@example.org>",
        license: "MIT",
        description: r#"says "hello" in C:\models\ and 李"#,
        kinds: &["text", "x-own"],
        devices: &["cpu", "cuda"],
        formats: &["gguf"],
        max_concurrency: 1_203,
        parks: true,
        prepares: true,
        ..ManifestSource::DEFAULT
    };

    #[test]
    fn what_is_written_in_a_constant_is_read_as_it_was_stated() {
        const JSON: [u8; GOOD.checked().json_bytes()] = GOOD.json();
        let read = Manifest::parse(&JSON).expect("a manifest");
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!((read.id.as_str(), read.version.as_str(), read.license.as_str()), (GOOD.id, GOOD.version, "MIT"));
        assert_eq!((read.authors.as_str(), read.description.as_str()), (GOOD.authors, GOOD.description));
        assert_eq!(
            (read.kinds, read.devices, read.formats),
            (owned(GOOD.kinds), owned(GOOD.devices), owned(GOOD.formats))
        );
        assert_eq!((read.max_concurrency, read.parks, read.memory_static, read.prepares), (1_203, true, false, true));
        assert!(read.permissions.is_empty());
    }

    #[test]
    fn a_plugin_runs_on_devices_that_there_are() {
        for (devices, is_sound) in [
            (&["cpu"][..], true),
            (&["cuda", "cpu"], true),
            (&["gpu"], false),
            (&["cpu", "cuda:0"], false),
            (&[], false),
        ] {
            let checked = std::panic::catch_unwind(|| ManifestSource { devices, ..GOOD }.checked());
            assert_eq!(checked.is_ok(), is_sound, "{devices:?}");
        }
    }

    proptest! {
        /// What compiles can be loaded, and what a host would refuse does not compile.
        #[test]
        fn checks_are_the_hosts(description in "[\\PC\n\t\u{7f}]{0,20}", id in "[a-zA.]{0,3}/?[a-z_.]{0,3}", name in "[a-z.-]{0,3}") {
            let kinds = [name.as_str()];
            let source = ManifestSource { id: &id, description: &description, kinds: &kinds, ..GOOD };
            let checked = std::panic::catch_unwind(|| source.checked()).is_ok();
            let json = source.json::<1024>();
            let read = Manifest::parse(&json[..source.json_bytes()]);
            prop_assert_eq!(checked, read.is_ok(), "{:?}", read);
            if let Ok(read) = read {
                prop_assert_eq!((read.id, read.description), (id, description));
            }
        }
    }
}
