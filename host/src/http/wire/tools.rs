//! Which functions an answer may call and which it has to, in OpenAI's words, the older ones among them.

use std::borrow::Cow;
use std::collections::HashSet;

use aihost_plugin_api::task::ToolChoice;

use super::fields::{Fields, Keys, Readable, text, wrong_type};
use super::format::{check_name, check_type};
use super::write_json;
use crate::domain::shown;
use crate::http::error::ApiError;

/// What is read of a tool and of a call of one.
pub(in crate::http) const TOOL_KEYS: Keys = &["type", "id", "function"];
/// What is read of a function and of a call of one.
pub(in crate::http) const FUNCTION_KEYS: Keys = &["name", "description", "parameters", "strict", "arguments"];
/// What is read of a choice that is no word, and of the tools that it allows.
pub(in crate::http) const CHOICE_KEYS: Keys = &["type", "function", "name", "allowed_tools", "mode", "tools"];
/// What is read of the schema of a function's parameters.
const PARAMETERS_KEYS: Keys = &["type"];

/// What a request says of tools, as far as it is not in the task.
#[derive(Clone, Debug, Default)]
pub(super) struct ToolsAsked {
    /// Whether they were sent as `functions`, whose clients look for calls elsewhere.
    pub(super) are_functions: bool,
    /// The field that has the answer call one, if it has to.
    pub(super) forced_by: Option<&'static str>,
    /// Which of those that were sent are in the task, if not all are.
    pub(super) kept: Option<Vec<usize>>,
}

/// Writes what the task has of tools: themselves, which is to be called, and whether several may be.
pub(super) fn write(
    fields: &Fields<'_>,
    out: &mut Vec<u8>,
    readable: &mut Readable<'_>,
    name_bytes_max: usize,
) -> Result<ToolsAsked, ApiError> {
    let choice = Choice::read(fields)?;
    let mut declared = Declared { choice: &choice, name_bytes_max, names: HashSet::new(), kept: Vec::new() };
    let are_functions = fields.get("tools").is_none() && fields.get("functions").is_some();
    out.extend_from_slice(b",\"tools\":[");
    let sent = declared.write(fields, out, readable)?;
    out.push(b']');
    choice.check(&declared.names)?;
    let forced = match &choice.chosen {
        Chosen::None | Chosen::Auto => None,
        Chosen::Required => Some(ToolChoice::Required),
        Chosen::Named(name) => Some(ToolChoice::named(&**name)),
    };
    if let Some(forced) = &forced {
        out.extend_from_slice(b",\"tool_choice\":");
        write_json(out, forced);
    }
    // There is one place for a call where functions were sent.
    if fields.flag("parallel_tool_calls")? == Some(false) || (are_functions && sent > 0) {
        out.extend_from_slice(b",\"parallel_tool_calls\":false");
    }
    let kept = (declared.kept.len() < sent).then_some(declared.kept);
    Ok(ToolsAsked { are_functions, forced_by: forced.map(|_| choice.key), kept })
}

/// Which of the tools may or must be called.
struct Choice<'a> {
    /// The field that says so.
    key: &'static str,
    chosen: Chosen<'a>,
    /// The only ones that may be, if not all.
    allowed: Option<HashSet<Cow<'a, str>>>,
}

enum Chosen<'a> {
    None,
    Auto,
    Required,
    Named(Cow<'a, str>),
}

impl<'a> Choice<'a> {
    fn read(fields: &Fields<'a>) -> Result<Self, ApiError> {
        let key = if fields.get("tool_choice").is_some() { "tool_choice" } else { "function_call" };
        let plain = |chosen| Ok(Self { key, chosen, allowed: None });
        let Some(sent) = fields.get(key) else { return plain(Chosen::Auto) };
        if !sent.get().starts_with('{') {
            let word = text(sent, || fields.path(key), "a string or an object")?;
            return plain(Chosen::word(&word, || fields.path(key))?);
        }
        let choice = Fields::of(sent, &fields.path(key), CHOICE_KEYS)?;
        if key == "function_call" {
            return plain(Chosen::Named(choice.required_text("name")?));
        }
        match &*choice.required_text("type")? {
            "function" => plain(Chosen::Named(function_name(&choice)?)),
            "allowed_tools" => {
                let (chosen, allowed) = allowed(&choice)?;
                Ok(Self { key, chosen, allowed: Some(allowed) })
            }
            other => {
                let path = choice.path("type");
                let message = format!("`{path}` must be function or allowed_tools, not `{}`", shown(other));
                Err(ApiError::unsupported(path, message))
            }
        }
    }

    /// Whether a tool is told to the model.
    fn allows(&self, name: &str) -> bool {
        let is_allowed = self.allowed.as_ref().is_none_or(|allowed| allowed.contains(name));
        is_allowed && !matches!(self.chosen, Chosen::None)
    }

    /// Holds it against the names of the tools.
    fn check(&self, names: &HashSet<Cow<'_, str>>) -> Result<(), ApiError> {
        let key = self.key;
        let chosen = match &self.chosen {
            Chosen::Named(name) => Some(name),
            _ => None,
        };
        if names.is_empty() && (self.allowed.is_some() || matches!(self.chosen, Chosen::Required | Chosen::Named(_))) {
            return Err(ApiError::invalid(key, format!("`{key}` needs `tools`")));
        }
        // Of several that are missing always the same is told.
        let missing = self.allowed.iter().flatten().chain(chosen).filter(|name| !names.contains(*name)).min();
        match missing {
            Some(name) => {
                let message = format!("`{key}` names the function `{}`, which is not among the tools", shown(name));
                Err(ApiError::invalid(key, message))
            }
            None => Ok(()),
        }
    }
}

impl Chosen<'_> {
    fn word(word: &str, path: impl Fn() -> String) -> Result<Self, ApiError> {
        Ok(match word {
            "none" => Self::None,
            "auto" => Self::Auto,
            "required" => Self::Required,
            other => {
                let path = path();
                let message = format!("`{path}` must be none, auto, required or a tool, not `{}`", shown(other));
                return Err(ApiError::invalid(path, message));
            }
        })
    }
}

/// The name in a choice of one function: within an object of its own as chats have it, beside its type as Responses do.
fn function_name<'a>(choice: &Fields<'a>) -> Result<Cow<'a, str>, ApiError> {
    match choice.object("function", FUNCTION_KEYS)? {
        Some(function) => function.required_text("name"),
        None => choice.text("name")?.ok_or_else(|| ApiError::missing(choice.path("function"))),
    }
}

/// The only functions that may be called, and whether one has to be.
fn allowed<'a>(choice: &Fields<'a>) -> Result<(Chosen<'a>, HashSet<Cow<'a, str>>), ApiError> {
    let inner = choice.object("allowed_tools", CHOICE_KEYS)?;
    let choice = inner.as_ref().unwrap_or(choice);
    let chosen = match choice.text("mode")?.as_deref() {
        None | Some("auto") => Chosen::Auto,
        Some("required") => Chosen::Required,
        Some(other) => {
            let path = choice.path("mode");
            return Err(ApiError::invalid(
                path.clone(),
                format!("`{path}` must be auto or required, not `{}`", shown(other)),
            ));
        }
    };
    let Some(items) = choice.array("tools")? else { return Err(ApiError::missing(choice.path("tools"))) };
    let mut names = HashSet::new();
    items.each(|i, tool| {
        let tool = Fields::of(tool, &items.item(i), CHOICE_KEYS)?;
        check_kind(&tool)?;
        names.insert(function_name(&tool)?);
        Ok(())
    })?;
    if names.is_empty() {
        let path = items.path();
        return Err(ApiError::invalid(path, format!("`{path}` must have at least one tool")));
    }
    Ok((chosen, names))
}

/// Tools that have been read so far.
struct Declared<'c, 'a> {
    choice: &'c Choice<'a>,
    name_bytes_max: usize,
    names: HashSet<Cow<'a, str>>,
    /// Those that the model is told.
    kept: Vec<usize>,
}

impl<'a> Declared<'_, 'a> {
    /// Writes `tools`, or the older `functions` in their form. How many were sent.
    fn write(
        &mut self,
        fields: &Fields<'a>,
        out: &mut Vec<u8>,
        readable: &mut Readable<'_>,
    ) -> Result<usize, ApiError> {
        if let Some(tools) = fields.array("tools")? {
            readable.check(tools.value(), tools.path())?;
            return tools.each(|i, sent| {
                let tool = Fields::of(sent, &tools.item(i), TOOL_KEYS)?;
                check_kind(&tool)?;
                let function = tool.object("function", FUNCTION_KEYS)?;
                let function = function.ok_or_else(|| ApiError::missing(tool.path("function")))?;
                self.add(i, &function, out, |out| out.extend_from_slice(sent.get().as_bytes()))
            });
        }
        let Some(functions) = fields.array("functions")? else { return Ok(0) };
        readable.check(functions.value(), functions.path())?;
        functions.each(|i, sent| {
            let function = Fields::of(sent, &functions.item(i), FUNCTION_KEYS)?;
            self.add(i, &function, out, |out| {
                out.extend_from_slice(b"{\"type\":\"function\",\"function\":");
                out.extend_from_slice(sent.get().as_bytes());
                out.push(b'}');
            })
        })
    }

    fn add(
        &mut self,
        at: usize,
        function: &Fields<'a>,
        out: &mut Vec<u8>,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), ApiError> {
        let name = function.required_text("name")?;
        check_name(&name, || function.path("name"), self.name_bytes_max)?;
        function.text("description")?;
        function.flag("strict")?;
        if let Some(parameters) = function.object("parameters", PARAMETERS_KEYS)? {
            check_type(&parameters, Some("object"))?;
        }
        if self.names.contains(&name) {
            let path = function.path("name");
            let message = format!("`{path}`: there is another tool of the name `{}`", shown(&name));
            return Err(ApiError::invalid(path, message));
        }
        if self.choice.allows(&name) {
            if !self.kept.is_empty() {
                out.push(b',');
            }
            write(out);
            self.kept.push(at);
        }
        self.names.insert(name);
        Ok(())
    }
}

/// Functions are the only tools that whoever asks can run.
fn check_kind(tool: &Fields<'_>) -> Result<(), ApiError> {
    let kind = tool.required_text("type")?;
    if kind == "function" {
        return Ok(());
    }
    let path = tool.path("type");
    let message = format!("`{path}` must be function; tools of type `{}` are not supported", shown(&kind));
    Err(ApiError::unsupported(path, message))
}

/// A call that an assistant made.
#[derive(serde::Serialize)]
pub(super) struct Call<'a> {
    id: Cow<'a, str>,
    r#type: &'static str,
    function: CalledFunction<'a>,
}

#[derive(serde::Serialize)]
struct CalledFunction<'a> {
    name: Cow<'a, str>,
    arguments: Cow<'a, str>,
}

impl<'a> Call<'a> {
    /// A call of a function.
    pub(super) fn of(id: impl Into<Cow<'a, str>>, name: Cow<'a, str>, arguments: Cow<'a, str>) -> Self {
        Self { id: id.into(), r#type: "function", function: CalledFunction { name, arguments } }
    }
}

/// The calls of an assistant's turn, of which the older `function_call` is one; nothing where there is none.
pub(super) fn calls<'a>(fields: &Fields<'a>, readable: &mut Readable<'_>) -> Result<Option<Vec<Call<'a>>>, ApiError> {
    if let Some(call) = fields.object("function_call", FUNCTION_KEYS)? {
        return Ok(Some(vec![Call::of("call_0", call.required_text("name")?, arguments(&call)?)]));
    }
    let Some(sent) = fields.array("tool_calls")? else { return Ok(None) };
    readable.check(sent.value(), sent.path())?;
    let mut calls = Vec::new();
    sent.each(|i, call| {
        let call = Fields::of(call, &sent.item(i), TOOL_KEYS)?;
        let function = call.object("function", FUNCTION_KEYS)?;
        let function = function.ok_or_else(|| ApiError::missing(call.path("function")))?;
        let id = call.text("id")?.unwrap_or_else(|| format!("call_{i}").into());
        calls.push(Call::of(id, function.required_text("name")?, arguments(&function)?));
        Ok(())
    })?;
    Ok((!calls.is_empty()).then_some(calls))
}

/// The arguments of a call, which are text; some send the object that it is of.
fn arguments<'a>(function: &Fields<'a>) -> Result<Cow<'a, str>, ApiError> {
    let Some(sent) = function.get("arguments") else { return Ok("{}".into()) };
    if sent.get().starts_with('{') {
        return Ok(sent.get().into());
    }
    if !sent.get().starts_with('"') {
        return Err(wrong_type(&function.path("arguments"), "a string of JSON, or an object", sent));
    }
    let said = text(sent, || function.path("arguments"), "a string of JSON")?;
    Ok(if said.trim().is_empty() { "{}".into() } else { said })
}
