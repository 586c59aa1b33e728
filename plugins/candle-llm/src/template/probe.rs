//! What a template does with conversations of a few words tells the form in which it serves all others.

use aihost_plugin_api::Message;
use serde_json::{Value, json};

use super::form::{Apart, Arguments, Content, Form, Ids, OtherArguments, Place, Tools, shape};
use super::jinja::{Jinja, Rendered, Scene};

/// Bytes of a probe's prompt; a template's own words are most of it.
const PROMPT_BYTES: usize = 256 << 10;

/// Words that no template has of its own.
const SYSTEM: &str = "probed system";
const USER: &str = "probed user";
const TEXT: &str = "probed text";
const OTHER_ARGUMENTS: &str = "probed arguments";
/// No call is of this tool, so that what shows of a call is the call's.
const TOOL: &str = "probed_tool";
const FIRST: Probed = Probed {
    id: "call_0123456789abcdefghijklmn",
    name: "probed_one",
    key: "key_one",
    value: "value_one",
    result: "result_one",
};
const SECOND: Probed = Probed {
    id: "call_abcdefghijklmn0123456789",
    name: "probed_two",
    key: "key_two",
    value: "value_two",
    result: "result_two",
};

/// A call, and what came of it.
#[derive(Clone, Copy)]
struct Probed {
    id: &'static str,
    name: &'static str,
    key: &'static str,
    value: &'static str,
    result: &'static str,
}

/// How much of a call shows, from nothing to all.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shown {
    Nothing,
    Some,
    /// All, but arguments are no JSON.
    Spelled,
    All,
}

/// Asks one template.
pub(super) struct Probe {
    pub(super) jinja: Jinja,
    pub(super) bos: String,
    pub(super) eos: String,
    /// Tools that all its conversations have.
    pub(super) tools: Vec<Value>,
}

/// A tool to ask with.
pub(super) fn tool() -> Value {
    let properties = json!({"word": {"type": "string", "description": "a word"}});
    let parameters = json!({"type": "object", "properties": properties, "required": ["word"]});
    json!({"type": "function", "function": {"name": TOOL, "description": "a tool", "parameters": parameters}})
}

impl Probe {
    /// The form in which the template serves conversations with these tools.
    pub(super) fn form(&self) -> Form {
        let mut form = Form::default();
        let user = [Message::user(USER)];
        let system = [Message::new("system", SYSTEM), Message::user(USER)];
        let forms = [Tools::Template, Tools::Message].map(|tools| Form { tools, ..form });
        let is_served = |form: &Form| self.rendered(&user, form).or_else(|| self.rendered(&system, form)).is_some();
        if !forms.iter().any(is_served) {
            // It is at fault, or knows none of this.
            return form;
        }
        if !self.tools.is_empty() {
            let told = [Tools::Template, Tools::BesideSystem].map(|tools| Form { tools, ..form });
            let shows = |form: &Form| self.shows(&user, form, TOOL);
            form = told.into_iter().find(shows).unwrap_or(Form { tools: Tools::Message, ..form });
        }
        if !self.shows(&system, &form, SYSTEM) {
            let merged = Form { system: Place::Content, ..form };
            if self.shows(&system, &merged, SYSTEM) {
                form = merged;
            }
        }
        form = self.with_calls(form);
        if form.calls == Place::Own {
            form.other_arguments = self.other_arguments(&form);
            let one = [Message::user(USER), calling(TEXT, &[FIRST]), answering(FIRST)];
            form.beside_text = self.apart(&one, &[FIRST], |beside_text| Form { beside_text, ..form });
            let two = [Message::user(USER), calling("", &[FIRST, SECOND]), answering(FIRST), answering(SECOND)];
            form.several = self.apart(&two, &[FIRST, SECOND], |several| Form { several, ..form });
        }
        form
    }

    /// The form in which a call and its result show best. What the template has a place for goes there, as long as anything of it
    /// shows; but a model that is told to call in another syntax is to see its calls in that.
    fn with_calls(&self, form: Form) -> Form {
        let (mut best, mut most) = (form, (0, Shown::Nothing));
        let own = if form.tools != Tools::Message { own_forms(form) } else { Vec::new() };
        for candidate in own.into_iter().chain(content_forms(form)) {
            let is_settled = if candidate.calls == Place::Own { most == (2, Shown::All) } else { most.0 == 2 };
            if is_settled {
                break;
            }
            let found = self.shown_in(&candidate);
            if found > most {
                (best, most) = (candidate, found);
            }
        }
        best
    }

    /// Whether a call and its result show, and how much of the call.
    fn shown_in(&self, form: &Form) -> (u8, Shown) {
        let messages = [Message::user(USER), calling("", &[FIRST]), answering(FIRST)];
        let Some(text) = self.rendered(&messages, form) else { return (0, Shown::Nothing) };
        let shown = shown(&text, FIRST);
        (u8::from(shown > Shown::Nothing) + u8::from(text.contains(FIRST.result)), shown)
    }

    fn other_arguments(&self, form: &Form) -> OtherArguments {
        let mut call = calling("", &[FIRST]);
        call.tool_calls = Some(json!([call_of(FIRST, OTHER_ARGUMENTS)]));
        let messages = [Message::user(USER), call, answering(FIRST)];
        if self.shows(&messages, form, OTHER_ARGUMENTS) { OtherArguments::Text } else { OtherArguments::Wrapped }
    }

    /// Whether a turn is to be taken apart for its calls to show.
    fn apart(&self, messages: &[Message], calls: &[Probed], form: impl Fn(Apart) -> Form) -> Apart {
        let shows_all = |apart: &Apart| {
            self.rendered(messages, &form(*apart)).is_some_and(|text| {
                calls.iter().all(|call| shown(&text, *call) > Shown::Nothing && text.contains(call.result))
            })
        };
        [Apart::Together, Apart::Turns].into_iter().find(shows_all).unwrap_or(Apart::Content)
    }

    fn shows(&self, messages: &[Message], form: &Form, needle: &str) -> bool {
        self.rendered(messages, form).is_some_and(|text| text.contains(needle))
    }

    fn rendered(&self, messages: &[Message], form: &Form) -> Option<String> {
        let scene = Scene {
            messages: shape(messages, &self.tools, form),
            tools: if form.tools != Tools::Message { self.tools.clone() } else { Vec::new() },
            bos: self.bos.clone(),
            eos: self.eos.clone(),
            add_generation_prompt: true,
            ..Scene::default()
        };
        match self.jinja.render(scene, PROMPT_BYTES) {
            Rendered::Whole(text) => Some(text),
            Rendered::TooLong | Rendered::Refused(_) | Rendered::Failed(_) => None,
        }
    }
}

/// In the order in which they are to be tried.
fn own_forms(form: Form) -> Vec<Form> {
    let results = [Place::Own, Place::Content].map(|results| Form { results, ..form });
    let ids = results.iter().flat_map(|form| [Ids::AsSent, Ids::Short].map(|ids| Form { ids, ..*form }));
    let contents = [Content::Empty, Content::Null, Content::Absent];
    let contents = ids.flat_map(|form| contents.map(|content| Form { content, ..form }));
    contents.flat_map(|form| [Arguments::Object, Arguments::Text].map(|arguments| Form { arguments, ..form })).collect()
}

fn content_forms(form: Form) -> Vec<Form> {
    let results = [Place::Own, Place::Content].map(|results| Form { calls: Place::Content, results, ..form });
    results.iter().flat_map(|form| [Ids::AsSent, Ids::Short].map(|ids| Form { ids, ..*form })).collect()
}

fn shown(text: &str, call: Probed) -> Shown {
    let needles = [call.name, call.key, call.value];
    let found = needles.iter().filter(|needle| text.contains(**needle)).count();
    // As Python writes a map, and as JSON writes JSON that is a text.
    let is_spelled = text.contains(&format!("'{}'", call.key)) || text.contains(&format!("\\\"{}", call.key));
    match found {
        0 => Shown::Nothing,
        1 | 2 => Shown::Some,
        _ if is_spelled => Shown::Spelled,
        _ => Shown::All,
    }
}

fn call_of(call: Probed, arguments: &str) -> Value {
    json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}})
}

fn calling(text: &str, calls: &[Probed]) -> Message {
    let arguments = |call: &Probed| format!("{{\"{}\": \"{}\"}}", call.key, call.value);
    let calls: Value = calls.iter().map(|call| call_of(*call, &arguments(call))).collect();
    Message::new("assistant", text).tool_calls(calls)
}

fn answering(call: Probed) -> Message {
    Message::new("tool", call.result).tool_call_id(call.id.to_owned())
}
