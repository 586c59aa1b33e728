//! Where in the body of another API the parts of a chat lay, so that what is wrong is told by its client's own words.

/// Where in the body of another API the parts of a chat lay.
#[derive(Clone, Debug, Default)]
pub(in crate::http) struct Sources {
    /// Each message.
    pub(super) messages: Vec<String>,
    /// Each tool, and what its parameters are called.
    pub(super) tools: Vec<(String, &'static str)>,
    /// Fields that have other names there, or lie deeper.
    pub(super) fields: Vec<(&'static str, &'static str)>,
}

impl Sources {
    /// Where that lay which the chat has here.
    pub(super) fn of(&self, path: &str) -> Option<String> {
        if let Some((at, rest)) = item_of("tools", path)
            && let Some((source, parameters)) = self.tools.get(at)
        {
            let rest = rest.strip_prefix(".function").unwrap_or(rest);
            return Some(match behind(rest, ".parameters") {
                Some(deeper) => format!("{source}.{parameters}{deeper}"),
                None => format!("{source}{rest}"),
            });
        }
        if let Some((at, rest)) = item_of("messages", path)
            && let Some(source) = self.messages.get(at)
        {
            // What lies deeper has another form there.
            let is_text = !source.contains(['[', '.']) && source != "messages";
            return Some(if is_text { source.clone() } else { format!("{source}{rest}") });
        }
        let known = self.fields.iter().filter_map(|(ours, theirs)| Some((*theirs, behind(path, ours)?)));
        // What is left of the path is shortest where most of it is known.
        let (theirs, rest) = known.min_by_key(|(_, rest)| rest.len())?;
        Some(format!("{theirs}{rest}"))
    }
}

/// What is behind this part of a path.
fn behind<'p>(path: &'p str, part: &str) -> Option<&'p str> {
    path.strip_prefix(part).filter(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Which item of an array a path leads into, and how it goes on.
fn item_of<'p>(array: &str, path: &'p str) -> Option<(usize, &'p str)> {
    let (number, rest) = path.strip_prefix(array)?.strip_prefix('[')?.split_once(']')?;
    Some((number.parse().ok()?, rest))
}
