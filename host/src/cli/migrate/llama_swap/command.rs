//! The text of a `cmd`: its words, and the port in them.

use crate::cli::auto::braced;

/// Where llama-swap puts the port that it chose.
pub(super) const PORT: &str = "${PORT}";
/// Programs that run containers.
const CONTAINERS: [&str; 3] = ["docker", "podman", "nerdctl"];

/// The words of a command, as llama-swap splits it: lines that begin with `#` are comments, a backslash may end a line.
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
pub(super) fn words(text: &str) -> Result<Vec<String>, String> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let lines: Vec<&str> = lines.map(|line| line.trim_end().strip_suffix('\\').unwrap_or(line)).collect();
    match shlex::split(&lines.join("\n")) {
        None => Err("has a quote that does not end".to_owned()),
        Some(words) if words.is_empty() => Err("is empty".to_owned()),
        Some(words) => Ok(words),
    }
}

/// Words as the host's plugin reads them: `{port}` for the port, and braces for themselves.
pub(super) fn templates(words: &[String], fixed: Option<u16>) -> Vec<String> {
    let escaped = braced(PORT);
    words
        .iter()
        .map(|word| {
            let word = braced(word).replace(&escaped, "{port}");
            match fixed {
                Some(port) if word == port.to_string() => "{port}".to_owned(),
                Some(port) => match word.strip_suffix(&format!("={port}")) {
                    Some(flag) if flag.starts_with('-') => format!("{flag}={{port}}"),
                    _ => word,
                },
                None => word,
            }
        })
        .collect()
}

/// Whether a port that is said by `proxy` is told once, and alone, so that a free one can be told instead.
pub(super) fn tells_port(words: &[String], port: u16) -> bool {
    let told = templates(words, Some(port));
    told.iter().filter(|word| word.contains("{port}")).count() == 1
}

/// Whether it runs a container.
pub(super) fn is_container(words: &[String]) -> bool {
    let program = words.first().map(String::as_str).unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default();
    CONTAINERS.contains(&name) && words.iter().any(|word| word == "run")
}

/// Whether a container goes on when its command has ended.
pub(super) fn is_detached(words: &[String]) -> bool {
    words.iter().any(|word| word == "--detach" || word == "-d")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_split_as_llama_swap_does() {
        let text = "# a comment\nserve \\\n  --port ${PORT}   \\\n # another, 'open\n --json '{\"a\": 1}' \"b c\"\n";
        let all = words(text).unwrap();
        assert_eq!(all, ["serve", "--port", "${PORT}", "--json", "{\"a\": 1}", "b c"]);
        assert_eq!(templates(&all, None)[2..5], ["{port}", "--json", "{{\"a\": 1}}"]);
        assert!(words("a 'b").unwrap_err().contains("quote"));
        assert!(words("# nothing\n").unwrap_err().contains("empty"));
    }

    #[test]
    fn a_port_that_is_told_once_becomes_a_free_one() {
        let split = |line: &str| words(line).unwrap();
        let listen = split("sd-server --listen-port 9999");
        assert!(tells_port(&listen, 9999));
        assert_eq!(templates(&listen, Some(9999))[2], "{port}");
        assert_eq!(templates(&split("x --port=81 8181"), Some(81)), ["x", "--port={port}", "8181"]);
        assert!(!tells_port(&split("docker run -p 9999:80 x"), 9999));
        assert!(!tells_port(&split("x 81 --timeout 81"), 81));
        assert_eq!(templates(&split("docker run -p 127.0.0.1:${PORT}:80"), None)[3], "127.0.0.1:{port}:80");
    }

    #[test]
    fn containers_are_known() {
        let split = |line: &str| words(line).unwrap();
        assert!(is_container(&split("/usr/bin/docker run -d x")) && is_detached(&split("docker run -d x")));
        assert!(!is_container(&split("docker start x")) && !is_detached(&split("docker run x")));
    }
}
