//! What each command shows on a terminal of 60, 80 and 140 columns, with and without colour, and what it writes where there is
//! no terminal: compared with the texts in `tests/golden/cli`. With `AIHOST_SCREENS=write` these are written anew; look at what
//! `git diff` shows of them.

use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aihost_tests::binary;
use aihost_tests::server::{Server, Setup, prepare};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// Columns of the terminals.
const WIDTHS: [u16; 3] = [60, 80, 140];
/// Bytes that every path of the tests' folder has, so that what depends on its length is the same everywhere.
const FOLDER_BYTES: usize = 60;

const YAML: &str = "\
listen: 127.0.0.1:1
devices: [{id: cpu, memory: 1GiB, max_loaded: 2}]
models:
  echo: {type: text, plugin: aihost/echo, default: true, aliases: [gpt-4o-mini, gpt-4o, text-davinci-003]}
  a-model-with-a-name-that-is-as-long-as-names-of-repositories-often-are: {type: text, plugin: aihost/echo}
  absent: {type: image, plugin: no-such-plugin, source: {path: absent.gguf}}
";
const WRONG: &str = "
  wrong: {type: text, plugin: aihost/echo, options: {latency: 20, tokens: many}}
";

/// A folder whose path has so many bytes, with what a host needs.
struct Here {
    _folder: tempfile::TempDir,
    root: PathBuf,
}

impl Here {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let fill = FOLDER_BYTES.saturating_sub(folder.path().as_os_str().len() + 1);
        assert!(fill > 0, "{} is too long for this test", folder.path().display());
        let root = folder.path().join("x".repeat(fill));
        std::fs::create_dir(&root).expect("a folder in it");
        let (made, _) = prepare(&Setup { plugins: vec!["echo"], ..Setup::default() });
        std::fs::create_dir(root.join("plugins")).expect("plugins");
        std::fs::copy(made.path().join("plugins/echo.so"), root.join("plugins/echo.so")).expect("a plugin");
        std::fs::write(root.join("plugins/notes.so"), "no library").expect("no plugin");
        let here = Self { _folder: folder, root };
        here.write("models.yaml", YAML);
        here.write("wrong.yaml", &format!("{YAML}{}", WRONG.trim_start_matches('\n')));
        here
    }

    fn write(&self, name: &str, text: &str) {
        let mut yaml = String::new();
        for key in ["plugins", "models", "state"] {
            let _written = writeln!(yaml, "{key}_dir: {}", self.root.join(key).display());
        }
        std::fs::write(self.root.join(name), yaml + text).expect("written");
    }

    /// The same wherever the folder is, and whenever.
    fn shown(&self, text: &str) -> String {
        let same = format!("/folder/{}", "x".repeat(FOLDER_BYTES - "/folder/".len()));
        let text = text.replace(&*self.root.display().to_string(), &same).replace("\r\n", "\n");
        without_hashes(&text).split_inclusive('\n').map(without_what_changes).collect()
    }

    fn command(&self, args: &[String]) -> Command {
        let mut command = Command::new(binary());
        command.args(args).current_dir(&self.root).env_clear();
        command.env("PATH", "/usr/bin:/bin").env("HOME", &self.root).env("TERM", "xterm");
        command
    }
}

/// The same text with zeros where the beginning of a file's hash stands, `(3dfcd903)`.
fn without_hashes(text: &str) -> String {
    let hash = |rest: &str| {
        rest.len() > 9 && rest.as_bytes()[8] == b')' && rest.bytes().take(8).all(|c| c.is_ascii_hexdigit())
    };
    let mut parts = text.split('(');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |said, rest| match hash(rest) {
        true => said + "(00000000" + &rest[8..],
        false => said + "(" + rest,
    })
}

/// A line without what is measured now, which is of another length each time, and without a file's hash.
fn without_what_changes(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["cpu", budget, unit, ..] => format!("cpu {budget} {unit} (measured)\n"),
        ["DEVICE", "BUDGET", ..] => format!("{}\n", words.join(" ")),
        ["sha256", _] => "sha256 (hash)\n".to_owned(),
        ["layout", _] => "layout (fingerprint)\n".to_owned(),
        ["rustc", "rustc", ..] => "rustc (compiler)\n".to_owned(),
        ["target", _] => "target (machine)\n".to_owned(),
        _ => line.to_owned(),
    }
}

/// What a command shows on a terminal of its own.
fn on_terminal(mut command: Command, columns: u16) -> String {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&master).and_then(|()| unlockpt(&master)).expect("it is ours");
    let size = Winsize { ws_row: 50, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&master, size).expect("it has a size");
    let name = ptsname(&master, Vec::new()).expect("it has a name").into_string().expect("of letters");
    let open = || std::fs::OpenOptions::new().read(true).write(true).open(&name).expect("its other end");
    command.stdin(Stdio::null()).stdout(open()).stderr(open());
    let mut child = command.spawn().expect("it starts");
    // The command holds the other end, and nobody else does from here on.
    drop(command);
    let mut said = Vec::new();
    // The system says that a terminal's other end is closed by an error.
    let _closed = std::fs::File::from(master).read_to_end(&mut said);
    child.wait().expect("it ends");
    String::from_utf8(said).expect("text")
}

fn compare(name: &str, text: &str, differing: &mut Vec<String>) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/cli").join(format!("{name}.txt"));
    if std::env::var("AIHOST_SCREENS").is_ok_and(|asked| asked == "write") {
        std::fs::write(&file, text).expect("written");
    }
    let known = std::fs::read_to_string(&file).unwrap_or_default();
    if known != text {
        differing.push(format!("{name} should be:\n{known}\nand is:\n{text}"));
    }
}

/// Lines end before the terminal does, but for one long word, which is broken by nothing.
fn fits(text: &str, columns: u16) -> Result<(), String> {
    for line in text.lines() {
        let is_table = line.starts_with(char::is_uppercase) || line.contains("  ");
        let breaks = line.split_whitespace().all(|word| word.len() <= usize::from(columns) / 2);
        if is_table && breaks && line.chars().count() > usize::from(columns) {
            return Err(format!("{columns} columns are exceeded by: {line}"));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_show_what_they_showed_on_every_terminal() {
    let here = Here::new();
    let mut serve = here.command(&["serve", "--listen", "127.0.0.1:0", "--config", "models.yaml"].map(str::to_owned));
    let server = Server::of(&mut serve, tempfile::tempdir().expect("a folder"));
    let url = server.base();
    let commands = [
        ("help", "--help"),
        ("help_models", "models --help"),
        ("help_ps", "ps --help"),
        ("check", "check"),
        ("check_wrong", "check --config wrong.yaml"),
        ("plugins_list", "plugins list"),
        ("plugins_info", "plugins info aihost/echo"),
        ("plugins_unknown", "plugins info aihost/ehco"),
        ("models_list", "models list --url URL"),
        ("models_pull", "models pull echo"),
        ("models_pull_which", "models pull"),
        ("models_unload", "models unload echo --url URL"),
        ("ps", "ps --url URL"),
        ("why", "why echo --url URL"),
        ("why_absent", "why absent --url URL"),
        ("why_unknown", "why ehco --url URL"),
        ("logs", "logs echo --url URL"),
    ];
    let mut differing = Vec::new();
    for (name, line) in commands {
        let args: Vec<String> =
            line.split(' ').map(|word| if word == "URL" { url.to_owned() } else { word.to_owned() }).collect();
        for columns in WIDTHS {
            let coloured = here.shown(&on_terminal(here.command(&args), columns));
            let mut plain = here.command(&args);
            plain.env("NO_COLOR", "1");
            let plain = here.shown(&on_terminal(plain, columns));
            assert!(!plain.contains('\u{1b}'), "{name}: {plain}");
            assert_eq!(without_colour(&coloured), plain, "{name} says the same in colour");
            fits(&plain, columns).unwrap_or_else(|why| differing.push(format!("{name}: {why}")));
            compare(&format!("{name}.{columns}"), &plain, &mut differing);
            if coloured != plain {
                compare(&format!("{name}.{columns}.colour"), &coloured, &mut differing);
            }
        }
        let piped = here.command(&args).output().expect("it runs");
        let text = [piped.stdout, piped.stderr].map(|text| here.shown(&String::from_utf8_lossy(&text)));
        assert!(!text.concat().contains(['\u{1b}', '…']), "{name}: {text:?}");
        compare(&format!("{name}.piped"), &text.concat(), &mut differing);
    }
    assert!(differing.is_empty(), "{}", differing.join("\n\n"));
}

/// A text without what sets colours: ESC, a bracket, numbers, an m.
fn without_colour(text: &str) -> String {
    let mut pieces = text.split('\u{1b}');
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |text, piece| text + piece.split_once('m').map_or("", |(_, rest)| rest))
}
