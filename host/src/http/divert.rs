//! Requests to OpenAI's paths that are for a model whose engine answers HTTP itself: they go there as they are, but for the
//! model's name, and nothing that this host knows of such requests is held against them. All others go on to their handler.

use std::ops::Range;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};

use super::app::App;
use super::body::{ArrivingBody, RawBody, check_content_type};
use super::caller::Caller;
use super::content_coding::unpack;
use super::custom::whole_or_streamed;
use super::engine_routes::{self, is_no_route};
use super::error::ApiError;
use super::multipart::{self, Form};
use super::page_key::{pairs, percent_decoded};
use super::proxy::{self, Outgoing, OutgoingBody};
use super::resolve::{self, Wanted};
use super::wire;
use crate::config::{Config, ModelConfig};
use crate::domain::{Class, Kind};
use crate::runtime::{KeepAlive, OutputMode};

/// A path whose requests may be for such a model.
#[derive(Clone)]
pub(super) struct Diverted {
    pub(super) app: App,
    /// The models that a request means which names none; `None` where it must name one.
    pub(super) wanted: Option<Wanted<'static>>,
    /// Where engines have what is asked for, if that is elsewhere or may be nowhere.
    pub(super) at: EnginePath,
}

/// Where engines answer what a path here answers.
#[derive(Clone, Copy, Debug)]
pub(super) enum EnginePath {
    /// At the same path.
    Same,
    /// At this one.
    At(&'static str),
    /// At this one, or nowhere: then it is asked of them in another way.
    Maybe(&'static str),
}

/// What a body of JSON says that matters here.
pub(super) struct Named {
    /// The model, if it names one.
    pub(super) model: Option<String>,
    /// Where that lies, quotes and all.
    pub(super) at: Option<Range<usize>>,
    /// Whether it says so more than once.
    pub(super) is_repeated: bool,
    pub(super) streams: bool,
    pub(super) class: Class,
    pub(super) keep_alive: Option<KeepAlive>,
}

/// Stands before handlers.
pub(super) async fn divert(State(diverted): State<Diverted>, request: Request, next: Next) -> Response {
    let config = diverted.app.handle.config();
    if !diverted.app.handle.may_speak_http(&config) {
        return next.run(request).await;
    }
    match diverted.take(&config, request).await {
        Ok(Taken::Answered(response)) => response,
        Ok(Taken::Left(request)) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// What became of a request.
pub(super) enum Taken {
    Answered(Response),
    /// It is for somebody else.
    Left(Request),
}

impl Diverted {
    /// Answers it, if it is for a model whose engine answers HTTP itself.
    pub(super) async fn take(&self, config: &Config, mut request: Request) -> Result<Taken, ApiError> {
        let Some(caller) = request.extensions().get::<Caller>().cloned() else { return Ok(Taken::Left(request)) };
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if let Some(boundary) = content_type.and_then(multipart::boundary).map(str::to_owned) {
            unpack(&mut request)?;
            return self.take_form(config, &caller, request, &boundary).await;
        }
        // Somebody may have taken it in before.
        let has_body = !request.body().is_end_stream() || request.extensions().get::<RawBody>().is_some();
        if !has_body || check_content_type(&request).is_err() || unpack(&mut request).is_err() {
            return self.take_query(config, &caller, request).await;
        }
        let head = Head::of(&request);
        let (parts, body) = request.into_parts();
        let body = RawBody::receive(Request::from_parts(parts.clone(), body), &self.app).await?;
        let named = match (body.clone().read(wire::parse_named).await, head.model.clone()) {
            (Ok(named), _) => Some(named),
            // What it says of a model cannot be read here, and might be by the engine.
            (Err(wrong), Some(name)) if may_be_object(&body.bytes) => match self.find(config, &caller, Some(&name)) {
                Some(_) => return Err(wrong),
                None => None,
            },
            (Err(_), Some(name)) => Some(Named::by_query(name)),
            // Whoever answers says what is wrong with it.
            (Err(_), None) => None,
        };
        let model = named
            .as_ref()
            .and_then(|named| self.find(config, &caller, named.model.as_deref().or(head.model.as_deref())));
        let (Some(named), Some(model)) = (named, model) else {
            let mut request = Request::from_parts(parts, Body::empty());
            request.extensions_mut().insert(body);
            return Ok(Taken::Left(request));
        };
        // Which of several an engine heeds is its own matter, and one of them was looked at.
        if named.is_repeated {
            return Err(ApiError::malformed("the body has `model` more than once; name one model").param("model"));
        }
        caller.access().asks_for(&model.id);
        let leave = |parts| {
            let mut request = Request::from_parts(parts, Body::empty());
            request.extensions_mut().insert(body.clone());
            Taken::Left(request)
        };
        if let EnginePath::Maybe(path) = self.at
            && engine_routes::lacks(&self.app, model, path).await
        {
            return Ok(leave(parts));
        }
        let bytes = with_model(&body.bytes, &named, model.engine_name());
        let delivery = match (named.streams, head.is_replayable(model)) {
            (_, false) => OutputMode::Once,
            (true, true) => OutputMode::Streamed,
            (false, true) => OutputMode::Gathered,
        };
        let class = named.class.max(caller.class());
        let head = head.at(self.at).naming(model.engine_name());
        let outgoing = head.outgoing(OutgoingBody::Whole(bytes), delivery, class, named.keep_alive);
        let response = proxy::ask(&self.app, &caller, model, outgoing).await?;
        match self.at {
            EnginePath::Maybe(path) if is_no_route(response.status()) => {
                engine_routes::learn(&self.app, model, path).await;
                Ok(leave(parts))
            }
            _ => Ok(Taken::Answered(response)),
        }
    }

    /// A form: read until its model is known, and passed on as it comes.
    async fn take_form(
        &self,
        config: &Config,
        caller: &Caller,
        request: Request,
        boundary: &str,
    ) -> Result<Taken, ApiError> {
        let head = Head::of(&request);
        let form = Form::read(ArrivingBody::of(request, &self.app)?, boundary).await?;
        let name = form.model().map(str::to_owned).or_else(|| head.model.clone());
        let model = match self.find(config, caller, name.as_deref()) {
            Some(model) => model,
            None => return Err(self.nobody(config, caller, name.as_deref(), &head)),
        };
        caller.access().asks_for(&model.id);
        let body = OutgoingBody::Streamed(form.with_model(model.engine_name())?);
        let head = head.naming(model.engine_name());
        let outgoing = head.outgoing(body, OutputMode::Once, caller.class(), None);
        proxy::ask(&self.app, caller, model, outgoing).await.map(Taken::Answered)
    }

    /// What only its query says anything of.
    async fn take_query(&self, config: &Config, caller: &Caller, mut request: Request) -> Result<Taken, ApiError> {
        let head = Head::of(&request);
        let Some(model) = head.model.as_deref().and_then(|name| self.find(config, caller, Some(name))) else {
            return Ok(Taken::Left(request));
        };
        caller.access().asks_for(&model.id);
        let head = head.naming(model.engine_name());
        let upgrade = proxy::upgrade_of(&mut request);
        let body = whole_or_streamed(&self.app, request).await?;
        let delivery = body.delivery(&head.method);
        let outgoing = Outgoing { upgrade, ..head.outgoing(body, delivery, caller.class(), None) };
        proxy::ask(&self.app, caller, model, outgoing).await.map(Taken::Answered)
    }

    /// The model that is meant, if its engine answers HTTP itself.
    fn find<'a>(&self, config: &'a Config, caller: &Caller, name: Option<&str>) -> Option<&'a ModelConfig> {
        let handle = &self.app.handle;
        let model = match (name, self.wanted) {
            (Some(name), _) => resolve::seen(config, caller).find(|model| model.is_called(name)),
            (None, Some(Wanted { kind, endpoint })) => {
                resolve::unnamed(resolve::seen(config, caller), kind, endpoint).ok()
            }
            (None, None) => None,
        };
        model.filter(|model| handle.speaks_http(model))
    }

    /// Why a form is for nobody here.
    fn nobody(&self, config: &Config, caller: &Caller, name: Option<&str>, head: &Head) -> ApiError {
        match name {
            Some(name) => match resolve::by_name(config, caller, name) {
                Ok(model) => resolve::wrong_kind(model, &head.path),
                Err(unknown) => unknown,
            },
            None => ApiError::missing_model("name it in the form's field `model`"),
        }
    }
}

/// What there is of a request beside its body.
pub(super) struct Head {
    method: Method,
    path: String,
    pub(super) target: String,
    headers: HeaderMap,
    /// The model that its query names.
    model: Option<String>,
}

impl Head {
    pub(super) fn of(request: &Request) -> Self {
        let uri = request.uri();
        let model = pairs(uri).find_map(named_by).filter(|name| !name.is_empty());
        Self {
            method: request.method().clone(),
            path: uri.path().to_owned(),
            target: uri.path_and_query().map_or("/", |target| target.as_str()).to_owned(),
            headers: request.headers().clone(),
            model,
        }
    }

    /// The same at the path that an engine has for it.
    fn at(mut self, at: EnginePath) -> Self {
        if let EnginePath::At(path) | EnginePath::Maybe(path) = at {
            let query = self.target.split_once('?').map(|(_, query)| format!("?{query}"));
            self.target = format!("{path}{}", query.unwrap_or_default());
        }
        self
    }

    /// The same with this name in its query, if there is one in it.
    fn naming(mut self, name: &str) -> Self {
        let Some((path, query)) = self.target.split_once('?') else { return self };
        let pair = |pair: &str| match named_by(pair) {
            Some(is) if is != name => format!("model={}", encoded(name)),
            _ => pair.to_owned(),
        };
        let query: Vec<String> = query.split('&').map(pair).collect();
        self.target = format!("{path}?{}", query.join("&"));
        self
    }

    /// Whether a worker that died of it is no reason not to ask another.
    fn is_replayable(&self, model: &ModelConfig) -> bool {
        model.kind != Kind::Custom || proxy::is_repeatable(&self.method, &self.headers)
    }

    pub(super) fn outgoing(
        &self,
        body: OutgoingBody,
        delivery: OutputMode,
        class: Class,
        keep_alive: Option<KeepAlive>,
    ) -> Outgoing {
        let mut headers = proxy::forwarded(&self.headers);
        // What passes is read for what it cost.
        headers.remove(header::ACCEPT_ENCODING);
        let (method, target) = (self.method.clone(), self.target.clone());
        Outgoing { method, target, headers, body, delivery, class, keep_alive, upgrade: None }
    }
}

/// The model that a member of a query names.
fn named_by(pair: &str) -> Option<String> {
    let (name, value) = pair.split_once('=')?;
    let value = (percent_decoded(name) == b"model").then(|| percent_decoded(value))?;
    Some(String::from_utf8_lossy(&value).into_owned())
}

/// A name as it stands in a query.
fn encoded(name: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/:@".contains(&byte);
    let one = |byte: u8| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    name.bytes().map(one).collect()
}

/// Whether a body is an object of JSON, by how it begins.
fn is_object(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"{")
}

/// The mark of the byte order in UTF-8 and, either way round, in UTF-16; that of UTF-32 differs from it by zeros.
const BYTE_ORDER_MARKS: [&[u8]; 3] = [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"];

/// Whether some reader may take a body for an object of JSON: some skip a mark of the byte order, some read UTF-16 and UTF-32.
fn may_be_object(body: &[u8]) -> bool {
    let zeros = body.iter().take_while(|byte| **byte == 0).count();
    let body = &body[zeros..];
    let mut marks = BYTE_ORDER_MARKS.iter().filter_map(|mark| body.strip_prefix(*mark));
    let body = marks.next().unwrap_or(body);
    body.iter().find(|byte| **byte != 0 && !byte.is_ascii_whitespace()) == Some(&b'{')
}

impl Named {
    fn by_query(model: String) -> Self {
        Self {
            model: Some(model),
            at: None,
            is_repeated: false,
            streams: false,
            class: Class::default(),
            keep_alive: None,
        }
    }
}

/// A body of JSON that names the model so.
fn with_model(body: &Bytes, named: &Named, name: &str) -> Bytes {
    if named.at.is_some() && named.model.as_deref() == Some(name) {
        return body.clone();
    }
    let quoted = serde_json::to_string(name).unwrap_or_default();
    let mut written = BytesMut::with_capacity(body.len() + quoted.len() + 16);
    match &named.at {
        Some(at) => {
            written.extend_from_slice(&body[..at.start]);
            written.extend_from_slice(quoted.as_bytes());
            written.extend_from_slice(&body[at.end..]);
        }
        None => {
            let Some(open) = body.iter().position(|byte| *byte == b'{').filter(|_| is_object(body)) else {
                return body.clone();
            };
            let is_empty = body[open + 1..].trim_ascii_start().starts_with(b"}");
            written.extend_from_slice(&body[..=open]);
            written.extend_from_slice(b"\"model\":");
            written.extend_from_slice(quoted.as_bytes());
            written.extend_from_slice(if is_empty { b"" } else { b"," });
            written.extend_from_slice(&body[open + 1..]);
        }
    }
    written.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_changes() {
        for (body, wanted) in [
            (r#"{"model":"alias","a":1}"#, r#"{"model":"own","a":1}"#),
            (r#" {"a":{"model":"x"}, "model" : "alias" }"#, r#" {"a":{"model":"x"}, "model" : "own" }"#),
            (r#"{"a":1}"#, r#"{"model":"own","a":1}"#),
            (r#"{ }"#, r#"{"model":"own" }"#),
            (r#"{"model":"own"}"#, r#"{"model":"own"}"#),
            (r#"{"model":null,"a":1}"#, r#"{"model":"own","a":1}"#),
        ] {
            let received = wire::ReceivedBody { text: body, class: Class::default() };
            let named = wire::parse_named(&received).unwrap();
            assert_eq!(with_model(&Bytes::from(body), &named, "own"), wanted, "{body}");
        }
    }

    #[test]
    fn what_is_no_object_goes_on_as_it_is() {
        for body in [r#"[{"a":1}]"#, r#""{""#, "7"] {
            assert_eq!(with_model(&Bytes::from(body), &Named::by_query("alias".to_owned()), "own"), body);
        }
        let wide = |text: &str| text.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<u8>>();
        for object in [
            b" {".to_vec(),
            "\u{feff}{".into(),
            wide("{\"model\": 1}"),
            wide("\u{feff}{}"),
            b"\xff\xfe{\0".into(),
            b"\xff\xfe\0\0{\0\0\0".into(),
            b"\0\0\xfe\xff\0\0\0{".into(),
        ] {
            assert!(may_be_object(&object), "{object:?}");
        }
        assert!(![&b"[{}]"[..], b"7", b"", b"\xff\xfb{"].iter().any(|body| may_be_object(body)));
    }

    #[test]
    fn a_name_in_the_query_becomes_the_engines() {
        for (target, name, wanted) in [
            ("/v1/x?a=1&model=org%2Falias&b", Some("org/alias"), "/v1/x?a=1&model=own/na%20me&b"),
            ("/v1/x?mod%65l=a&model=b", Some("a"), "/v1/x?model=own/na%20me&model=own/na%20me"),
            ("/v1/x?model=", None, "/v1/x?model=own/na%20me"),
            ("/v1/x?models=a&x", None, "/v1/x?models=a&x"),
            ("/v1/x", None, "/v1/x"),
        ] {
            let head = Head::of(&Request::builder().uri(target).body(Body::empty()).unwrap());
            assert_eq!(head.model.as_deref(), name, "{target}");
            assert_eq!(head.naming("own/na me").target, wanted);
        }
    }
}
