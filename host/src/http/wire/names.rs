//! What the fields of a request are called by the client who sent it: a plugin knows the task alone, and names its fields.

use super::format::FormatSource;
use super::sources::Sources;
use super::tools::ToolsAsked;

/// What a client wrote in other words than the task has it.
#[derive(Clone, Debug, Default)]
pub(in crate::http) struct FieldNames {
    /// What asks for a form of the answer.
    pub(super) format: Option<FormatSource>,
    /// Which tools are in the task, and which has to be called.
    pub(super) tools: ToolsAsked,
    /// Where everything lay in the body of another API.
    pub(super) elsewhere: Option<Sources>,
}

impl FieldNames {
    /// The field that takes a plugin which keeps an answer to a form, as the client wrote it; nothing if any plugin will do.
    pub(in crate::http) fn needs_grammar(&self) -> Option<String> {
        let field = match (&self.format, self.tools.forced_by) {
            (Some(format), _) => format.field,
            (None, Some(choice)) => choice,
            (None, None) => return None,
        };
        Some(self.in_body(field.to_owned()))
    }

    /// Where in the body that lies which a plugin calls by this path.
    pub(in crate::http) fn of(&self, path: &str) -> String {
        let path = ["input.", "sampling."].into_iter().find_map(|part| path.strip_prefix(part)).unwrap_or(path);
        let format = self.format.as_ref().and_then(|format| format.of(path));
        self.in_body(format.unwrap_or_else(|| self.in_chat(path)))
    }

    /// The same of a chat, in whose words the bodies of other APIs are read.
    fn in_chat(&self, path: &str) -> String {
        if let Some(rest) = path.strip_prefix("template_arguments") {
            return format!("chat_template_kwargs{rest}");
        }
        if path == "tool_choice" {
            return self.tools.forced_by.unwrap_or("tool_choice").to_owned();
        }
        let Some(rest) = path.strip_prefix("tools") else { return path.to_owned() };
        let list = if self.tools.are_functions { "functions" } else { "tools" };
        let at = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let Some((at, rest)) = at.and_then(|(at, rest)| Some((at.parse::<usize>().ok()?, rest))) else {
            return format!("{list}{rest}");
        };
        let at = self.tools.kept.as_ref().and_then(|kept| kept.get(at).copied()).unwrap_or(at);
        let rest = if self.tools.are_functions { rest.strip_prefix(".function").unwrap_or(rest) } else { rest };
        format!("{list}[{at}]{rest}")
    }

    fn in_body(&self, path: String) -> String {
        self.elsewhere.as_ref().and_then(|sources| sources.of(&path)).unwrap_or(path)
    }
}
