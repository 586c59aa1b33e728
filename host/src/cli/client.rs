//! Talking to a running server.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, Method, RequestBuilder, Response, Url};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

use super::failure::CliError;
use super::{CommandContext, out};
use crate::config::{ApiKey, Contact, Env, Scope, shown_url};
use crate::domain::excerpt;
use crate::runtime::running_host;
use crate::store::{Trust, causes, innermost};

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take for a whole answer that it knows at once: a status, a plan, the lines of a log, that it is there.
const ANSWER_LIMIT: Duration = Duration::from_secs(8);
/// Bytes of an answer that is read whole; a status of a hundred thousand models fits.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Bytes of an error that are read.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// Bytes that are shown of what a server says it is.
const PRODUCT_BYTES: usize = 60;
/// Bytes of its sentence that are shown.
const ERROR_SHOWN_BYTES: usize = 1000;
/// Between two looks whether a server is still there that does something long.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Looks in a row without an answer after which it is not.
const LOOKS: u32 = 2;

/// Which server a command talks to.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct ServerTarget {
    /// The server's address. Default: `listen:` of models.yaml.
    #[arg(long, value_name = "URL")]
    pub(super) url: Option<String>,
    /// The API key for that server, or `env:NAME`. Default: AIHOST_API_KEY, else one of models.yaml; both are sent to the
    /// address of models.yaml alone.
    #[arg(long, value_name = "KEY")]
    pub(super) key: Option<String>,
}

impl ServerTarget {
    /// The key that was named for this server.
    fn key(&self, env: &Env) -> Result<Option<String>, CliError> {
        let Some(typed) = &self.key else { return Ok(None) };
        let Some(variable) = typed.strip_prefix("env:") else { return Ok(Some(typed.clone())) };
        match env.named(variable) {
            Some(key) => Ok(Some(key.to_owned())),
            None => Err(CliError::usage(format!("`--key env:{variable}` names a variable that is not set"))
                .hint(format!("export {variable}=KEY"))),
        }
    }
}

/// What a command takes that shows a table of a server.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Listing {
    #[command(flatten)]
    pub(super) target: ServerTarget,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// A model as the server shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ListedModel {
    pub(super) id: String,
    #[serde(default)]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) plugin: String,
    #[serde(default)]
    pub(super) state: String,
    pub(super) device: Option<String>,
    #[serde(default)]
    pub(super) memory: u64,
    pub(super) measured: Option<u64>,
    #[serde(default)]
    pub(super) active: u32,
    #[serde(default)]
    pub(super) queued: u32,
    pub(super) progress: Option<u32>,
    pub(super) step: Option<String>,
    #[serde(default)]
    pub(super) loads: u64,
    pub(super) idle_ms: Option<u64>,
    pub(super) pid: Option<u32>,
    pub(super) error: Option<String>,
    pub(super) note: Option<String>,
    #[serde(default)]
    pub(super) aliases: Vec<String>,
}

/// A device as the server shows it: bytes, and nothing where it cannot tell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ListedDevice {
    pub(super) id: String,
    #[serde(default)]
    pub(super) budget: u64,
    #[serde(default)]
    pub(super) reserved: u64,
    pub(super) held: Option<u64>,
    pub(super) others: Option<u64>,
    pub(super) free: Option<u64>,
    pub(super) total: Option<u64>,
}

/// The models of a server as clients list them.
#[derive(Deserialize)]
struct ServedModels {
    data: Vec<ListedModel>,
}

/// A server and how to be let in.
#[derive(Clone)]
pub(super) struct Server {
    client: Client,
    url: String,
    /// The same as it is shown.
    shown: String,
    keys: Keys,
}

/// What a server is sent to be let in.
#[derive(Clone)]
enum Keys {
    /// Nothing is known.
    None,
    /// This one, whatever is asked.
    One(String),
    /// The first of models.yaml that is for what is asked.
    OfConfig(Vec<Arc<ApiKey>>),
}

impl Keys {
    fn of(&self, scope: Scope) -> Option<&str> {
        match self {
            Self::None => None,
            Self::One(key) => Some(key),
            Self::OfConfig(keys) => {
                let fits = keys.iter().filter(|key| key.scopes.contains(&scope));
                // One that sees all before one that does not, and one of somebody who waits before one for batch work.
                let best = fits.min_by_key(|key| (key.models.is_some(), key.class))?;
                best.secrets.first().map(String::as_str)
            }
        }
    }
}

impl Server {
    /// The server a command means: `--url`, else where the configuration listens.
    pub(super) fn of(context: &CommandContext, target: &ServerTarget) -> Result<Self, CliError> {
        let named = target.key(&context.env)?;
        let own_key = || context.env.api_key().map(str::to_owned);
        let Some(url) = target.url.as_deref().map(base_url) else {
            let contact = context.contact()?;
            if let Some(problem) = &contact.problem {
                let file = problem.file.as_deref().unwrap_or(Path::new("models.yaml")).display();
                out::note(&format!(
                    "note: {file} is wrong (`aihost check` says where); it tells where its server is all the same"
                ));
            }
            // The one that runs may listen where the file said before it was edited.
            let running = running_host(&contact.paths.state, contact.listen);
            let listen = running.map_or(contact.listen, |running| running.listen);
            return Self::of_contact(&Contact { listen, ..contact }, named.or_else(own_key));
        };
        // A server elsewhere needs no models.yaml here. The keys that are known here belong to the one of models.yaml.
        match context.contact() {
            Ok(contact) if named.is_none() && is_of_config(&url, contact.listen) => {
                Self::of_contact(&contact, own_key())
            }
            _ => {
                let encrypted = url.starts_with("https://").then(|| Trust::from_env(&context.env)).transpose();
                Self::at(url, named.map_or(Keys::None, Keys::One), encrypted.map_err(CliError::failed)?)
            }
        }
    }

    /// The server that this configuration starts.
    pub(super) fn of_contact(contact: &Contact, key: Option<String>) -> Result<Self, CliError> {
        Self::of_keys(contact.listen, contact.api_keys.clone(), key)
    }

    /// The server that listens here, which has these keys; `key`: the one to send, if it is known.
    pub(super) fn of_keys(listen: SocketAddr, keys: Vec<Arc<ApiKey>>, key: Option<String>) -> Result<Self, CliError> {
        let keys = key.map_or_else(|| Keys::OfConfig(keys), Keys::One);
        Self::at(format!("http://{}", reachable(listen)), keys, None)
    }

    fn at(url: String, keys: Keys, trust: Option<Trust>) -> Result<Self, CliError> {
        // A server that sends elsewhere would have the key sent there.
        let builder = Client::builder().connect_timeout(CONNECT_TIMEOUT).no_proxy().redirect(Policy::none());
        let client = match trust {
            Some(trust) => builder.use_preconfigured_tls(trust.config),
            None => builder,
        };
        let client = client.build().map_err(|e| CliError::failed(format!("the HTTP client cannot be set up: {e}")))?;
        Ok(Self { client, shown: shown_url(&url), url, keys })
    }

    /// Whether it takes requests.
    pub(super) async fn is_ready(&self) -> bool {
        self.send(self.request(Method::GET, "/readyz").timeout(CONNECT_TIMEOUT)).await.is_ok()
    }

    /// The models that can be asked, as clients list them. Without their states.
    pub(super) async fn served(&self) -> Result<Vec<ListedModel>, CliError> {
        let list: ServedModels = self.known(self.request(Method::GET, "/v1/models")).await?;
        Ok(list.data)
    }

    /// Where every model stands.
    pub(super) async fn status(&self) -> Result<Vec<ListedModel>, CliError> {
        self.known(self.request(Method::GET, "/admin/status")).await
    }

    /// What there is to say of every device; `None` of a server that is too old to tell.
    pub(super) async fn devices(&self) -> Result<Option<Vec<ListedDevice>>, CliError> {
        let response = self.answered(self.request(Method::GET, "/admin/devices").timeout(ANSWER_LIMIT)).await?;
        if response.status() == reqwest::StatusCode::NOT_FOUND {
            return Ok(None);
        }
        self.read(self.accepted(response).await?).await.map(Some)
    }

    /// The server at this moment, in the reader's own shape.
    pub(super) async fn overview<T: serde::de::DeserializeOwned>(&self) -> Result<T, CliError> {
        self.known(self.request(Method::GET, "/admin/overview")).await
    }

    /// What a request for this model would meet.
    pub(super) async fn plan(&self, model: &str) -> Result<Value, CliError> {
        self.known(self.request(Method::GET, "/admin/plan").query(&[("model", model)])).await
    }

    /// What a model's workers logged, as text.
    pub(super) async fn logs(&self, model: &str) -> Result<Response, CliError> {
        self.send(self.request(Method::GET, &format!("/logs/{model}")).timeout(ANSWER_LIMIT)).await
    }

    /// The same as events that go on. To be read within [`Self::attended`].
    pub(super) async fn follow(&self, model: &str) -> Result<Response, CliError> {
        self.send(self.request(Method::GET, &format!("/logs/{model}")).query(&[("follow", true)])).await
    }

    /// Posts JSON. The answer may take as long as a load or a generation, so it is awaited within [`Self::attended`].
    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Response, CliError> {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// Waits for something that may take any time, for as long as the server is there at all.
    pub(super) async fn attended<T>(&self, work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
        // In a task of its own: what is worked on may wait for whoever reads stdout, and no server is to blame for that.
        let server = self.clone();
        let mut silence = AbortOnDropHandle::new(tokio::spawn(async move { server.silence().await }));
        tokio::select! {
            done = work => done,
            _silent = &mut silence => Err(self.unanswered()),
        }
    }

    /// Resolves when the server does not answer the simplest of questions. One that refuses connections has ended, which
    /// whoever waits for an answer of it learns by that.
    async fn silence(&self) {
        let mut unanswered = 0;
        while unanswered < LOOKS {
            let look = self.request(Method::GET, "/livez").timeout(ANSWER_LIMIT / LOOKS);
            if matches!(self.send(look).await, Err(CliError::Unanswered { .. })) {
                // Time passes for a command that was stopped and goes on, too: only the next look tells.
                unanswered += 1;
            } else {
                unanswered = 0;
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }

    /// JSON that the server has at hand.
    async fn known<T: serde::de::DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, CliError> {
        self.read(self.send(request.timeout(ANSWER_LIMIT)).await?).await
    }

    async fn read<T: serde::de::DeserializeOwned>(&self, response: Response) -> Result<T, CliError> {
        let foreign = |why: String| CliError::failed(format!("{} does not answer like an aihost: {why}", self.shown));
        let body = beginning(response, ANSWER_BYTES_MAX).await.map_err(|error| match error.is_timeout() {
            true => self.unanswered(),
            false => foreign(reason(&error)),
        })?;
        serde_json::from_slice(&body).map_err(|error| match body.len() {
            ANSWER_BYTES_MAX.. => foreign(format!("its answer is longer than {ANSWER_BYTES_MAX} bytes")),
            _ => foreign(error.to_string()),
        })
    }

    /// An answer, called `what`, whose body broke off.
    pub(super) fn broke_off(&self, what: &str, error: &reqwest::Error) -> CliError {
        match error.is_timeout() {
            true => self.unanswered(),
            false => CliError::failed(format!("{what} broke off: {}", reason(error))),
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> CliError {
        let url = &self.shown;
        match failed_at(error) {
            Stage::Name => CliError::NoServer {
                message: format!("there is no machine of the name in {url}: {}", reason(error)),
                hint: "correct the name in `--url`".to_owned(),
            },
            Stage::Tls if url.starts_with("https://") => CliError::NoServer {
                message: format!("{url} does not take encrypted connections: {}", reason(error)),
                hint: format!("an aihost speaks plain HTTP: try `--url {}`", url.replacen("https", "http", 1)),
            },
            Stage::Http => CliError::NoServer {
                message: format!("what listens at {url} does not speak HTTP: {}", reason(error)),
                hint: "name the address of an aihost with `--url`".to_owned(),
            },
            Stage::Tls | Stage::Connection => CliError::Unreachable { url: url.clone(), reason: reason(error) },
        }
    }

    fn unanswered(&self) -> CliError {
        CliError::Unanswered { url: self.shown.clone(), seconds: ANSWER_LIMIT.as_secs() }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        // Control of models and looks at them are for operators, all else is what clients do.
        let scope = if path.starts_with("/v1/") { Scope::Use } else { Scope::Operate };
        let request = self.client.request(method, format!("{}{path}", self.url));
        match self.keys.of(scope) {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, CliError> {
        let response = self.answered(request).await?;
        self.accepted(response).await
    }

    /// An answer, whatever its status.
    async fn answered(&self, request: RequestBuilder) -> Result<Response, CliError> {
        request.send().await.map_err(|error| {
            if error.is_builder() {
                CliError::usage(format!("`{}` is not a server's address", self.shown))
                    .hint("write it like http://host:9000")
            } else if error.is_timeout() && !error.is_connect() {
                self.unanswered()
            } else {
                self.unreachable(&error)
            }
        })
    }

    /// An answer that says yes.
    async fn accepted(&self, response: Response) -> Result<Response, CliError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if status.is_redirection() {
            return Err(CliError::failed(format!("{} sends elsewhere ({status}), which is not followed", self.shown))
                .hint("name the server's own address with `--url`"));
        }
        // What does not come in time is not waited for: that it failed is known.
        let is_own = response.headers().contains_key("x-request-id");
        let product = response.headers().get("server").and_then(|name| name.to_str().ok()).map(str::to_owned);
        let body = tokio::time::timeout(ANSWER_LIMIT, beginning(response, ERROR_BYTES_MAX)).await;
        let told = ToldError::read(&body.ok().and_then(Result::ok).unwrap_or_default());
        let Some(ToldError { message, code }) = told else {
            let answered = format!("the server answered {status}");
            let product =
                product.map_or_else(String::new, |name| format!(" (it says it is {})", excerpt(&name, PRODUCT_BYTES)));
            return Err(match is_own {
                true => CliError::failed(answered),
                false => CliError::failed(format!("what listens at {} is no aihost{product}: {answered}", self.shown))
                    .hint("name the address of an aihost with `--url`"),
            });
        };
        if let Some(hint) = code.as_deref().and_then(hint_for) {
            return Err(CliError::failed(message).hint(hint));
        }
        Err(match (status.as_u16(), &self.keys) {
            (401 | 403, Keys::None) => CliError::failed(message)
                .hint("name a key for this server with `--key env:NAME`; AIHOST_API_KEY and models.yaml are for the one of models.yaml"),
            (401 | 403, _) => CliError::failed(message)
                .hint("set AIHOST_API_KEY to a key of the server that may do this, or name one with `--key env:NAME`"),
            _ => CliError::failed(message),
        })
    }
}

/// Where whoever is on this machine reaches a listener.
pub(super) fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Whether a URL means this listener, whose keys are sent only to it. `localhost` does, and is then not looked up: another
/// program may listen on the other address that it stands for.
fn is_of_config(url: &str, listen: SocketAddr) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let own = reachable(listen).ip();
    let host = url.host_str().unwrap_or_default();
    let host_is_own = match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(ip) => ip == own,
        Err(_) => host == "localhost" && own.is_loopback(),
    };
    let has_more = !matches!(url.path(), "" | "/") || !url.username().is_empty() || url.password().is_some();
    host_is_own && !has_more && url.scheme() == "http" && url.port_or_known_default() == Some(listen.port())
}

/// A server's address as people write it: with or without a scheme, and with the `/v1` that clients of the API want.
fn base_url(typed: &str) -> String {
    let typed = typed.trim().trim_end_matches('/');
    let typed = typed.strip_suffix("/v1").unwrap_or(typed).trim_end_matches('/');
    if typed.contains("://") { typed.to_owned() } else { format!("http://{typed}") }
}

/// How far a request came that had no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The machine's name was looked up.
    Name,
    /// A connection was asked for.
    Connection,
    /// The connection was to be encrypted.
    Tls,
    /// What came back is no HTTP.
    Http,
}

fn failed_at(error: &reqwest::Error) -> Stage {
    let has_code = |cause: &io::Error| cause.raw_os_error().is_some();
    if causes(error).any(|cause| cause.is::<rustls::Error>()) {
        Stage::Tls
    } else if !error.is_connect() {
        Stage::Http
    } else if causes(error).filter_map(|cause| cause.downcast_ref()).any(has_code) {
        Stage::Connection
    } else {
        Stage::Name
    }
}

/// An OpenAI-shaped error.
#[derive(Debug, PartialEq, Eq)]
struct ToldError {
    /// One line, whoever answered.
    message: String,
    code: Option<String>,
}

impl ToldError {
    fn read(body: &[u8]) -> Option<Self> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let error = body.get("error")?;
        let message = excerpt(error.get("message").or(Some(error))?.as_str()?, ERROR_SHOWN_BYTES);
        Some(Self { message, code: error.get("code").and_then(Value::as_str).map(str::to_owned) })
    }
}

/// What to type after an error of this code.
fn hint_for(code: &str) -> Option<&'static str> {
    match code {
        "model_not_found" => Some("`aihost models list` shows what there is"),
        "model_not_usable" | "model_not_pulled" | "insufficient_vram" => Some("`aihost why MODEL` says what is wrong"),
        "worker_died" | "request_suspected" | "timed_out" => Some("`aihost logs MODEL` shows its last lines"),
        _ => None,
    }
}

/// The beginning of a body, at most so many bytes of it.
async fn beginning(mut response: Response, most: usize) -> reqwest::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await? {
        body.extend_from_slice(&piece[..piece.len().min(most - body.len())]);
        if body.len() == most {
            break;
        }
    }
    Ok(body)
}

/// The innermost cause, which is the one that says something.
fn reason(error: &reqwest::Error) -> String {
    let said = innermost(error);
    match error.url() {
        // Its own sentence repeats the address, and what may be in it.
        Some(url) => said.replace(url.as_str(), &shown_url(url.as_str())),
        None => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Selection, parse};

    #[test]
    fn a_url_is_that_of_the_configuration_only_if_it_can_mean_nothing_else() {
        for (url, listen, is_own) in [
            ("http://127.0.0.1:9000", "127.0.0.1:9000", true),
            ("http://127.0.0.1:9000/", "127.0.0.1:9000", true),
            ("http://localhost:9000", "127.0.0.1:9000", true),
            ("HTTP://LOCALHOST:9000", "127.0.0.1:9000", true),
            ("http://127.0.0.1:9000", "0.0.0.0:9000", true),
            ("http://[::1]:9000", "[::]:9000", true),
            ("http://10.0.0.5:9000", "10.0.0.5:9000", true),
            ("http://127.0.0.1", "127.0.0.1:80", true),
            ("http://[::1]:9000", "127.0.0.1:9000", false),
            ("http://127.0.0.1:9001", "127.0.0.1:9000", false),
            ("http://127.0.0.2:9000", "127.0.0.1:9000", false),
            ("https://127.0.0.1:9000", "127.0.0.1:9000", false),
            ("http://localhost:9000", "10.0.0.5:9000", false),
            ("http://10.0.0.5:9000", "0.0.0.0:9000", false),
            ("http://localhost.evil.example:9000", "127.0.0.1:9000", false),
            ("http://127.0.0.1:9000@evil.example", "127.0.0.1:9000", false),
            ("http://127.0.0.1:9000/other", "127.0.0.1:9000", false),
            ("127.0.0.1:9000", "127.0.0.1:9000", false),
            ("", "127.0.0.1:9000", false),
        ] {
            assert_eq!(is_of_config(url, listen.parse().unwrap()), is_own, "{url} and {listen}");
        }
    }

    #[test]
    fn a_key_is_chosen_by_what_is_asked() {
        let keys = |typed: &str| {
            let text = format!("api_keys: [{typed}]\nmodels: {{a: {{type: text, plugin: p}}}}");
            let file = std::path::Path::new("/m.yaml");
            Keys::OfConfig(parse(&text, file, &Selection::default(), &Env::default()).unwrap().api_keys)
        };
        for (typed, asks, operates) in [
            ("one", Some("one"), Some("one")),
            ("{key: batch, class: batch}, one", Some("one"), Some("one")),
            ("{key: narrow, models: [a]}, {key: batch, class: batch}", Some("batch"), None),
            ("{key: ops, scope: operate}, {key: user}", Some("user"), Some("ops")),
            ("{key: prom, scope: metrics}", None, None),
        ] {
            let keys = keys(typed);
            assert_eq!((keys.of(Scope::Use), keys.of(Scope::Operate)), (asks, operates), "{typed}");
        }
    }
}
