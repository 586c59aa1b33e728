//! Talking to a running server.

use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

use super::CommandContext;
use super::failure::CliError;
use crate::config::Config;
use crate::domain::excerpt;
use crate::store::Trust;

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take for a whole answer that it knows at once: a status, a plan, the lines of a log, that it is there.
const ANSWER_LIMIT: Duration = Duration::from_secs(8);
/// Bytes of an answer that is read whole; a status of a hundred thousand models fits.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Bytes of an error that are read.
const ERROR_BYTES_MAX: usize = 64 << 10;
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
    #[serde(default)]
    pub(super) aliases: Vec<String>,
}

/// A server and how to be let in.
#[derive(Clone, Debug)]
pub(super) struct Server {
    client: Client,
    url: String,
    key: Option<String>,
}

impl Server {
    /// The server a command means: `--url`, else where the configuration listens.
    pub(super) fn of(context: &CommandContext, target: &ServerTarget) -> Result<Self, CliError> {
        let key = context.env.api_key().map(str::to_owned);
        match &target.url {
            // A server elsewhere needs no models.yaml here; its key does, unless the environment has it.
            Some(url) => {
                let from_file = || context.load().ok().and_then(|config| first_key(&config));
                let encrypted = url.starts_with("https://").then(|| Trust::from_env(&context.env)).transpose();
                let trust = encrypted.map_err(CliError::failed)?;
                Self::at(url.trim_end_matches('/').to_owned(), key.or_else(from_file), trust)
            }
            None => Self::of_config(&context.load()?, key),
        }
    }

    /// The server that this configuration starts.
    pub(super) fn of_config(config: &Config, key: Option<String>) -> Result<Self, CliError> {
        let mut address = config.listen;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv6() {
                std::net::Ipv6Addr::LOCALHOST.into()
            } else {
                std::net::Ipv4Addr::LOCALHOST.into()
            });
        }
        Self::at(format!("http://{address}"), key.or_else(|| first_key(config)), None)
    }

    fn at(url: String, key: Option<String>, trust: Option<Trust>) -> Result<Self, CliError> {
        let builder = Client::builder().connect_timeout(CONNECT_TIMEOUT).no_proxy();
        let client = match trust {
            Some(trust) => builder.use_preconfigured_tls(trust.config),
            None => builder,
        };
        let client = client.build().map_err(|e| CliError::failed(format!("the HTTP client cannot be set up: {e}")))?;
        Ok(Self { client, url, key })
    }

    /// Where every model stands.
    pub(super) async fn status(&self) -> Result<Vec<ListedModel>, CliError> {
        self.known(self.request(Method::GET, "/admin/status")).await
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
        let response = self.send(request.timeout(ANSWER_LIMIT)).await?;
        let foreign = |why: String| CliError::failed(format!("{} does not answer like an aihost: {why}", self.url));
        let body = beginning(response, ANSWER_BYTES_MAX).await.map_err(|error| match error.is_timeout() {
            true => self.unanswered(),
            false => foreign(error.to_string()),
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
            false => CliError::failed(format!("{what} broke off: {error}")),
        }
    }

    fn unanswered(&self) -> CliError {
        CliError::Unanswered { url: self.url.clone(), seconds: ANSWER_LIMIT.as_secs() }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, CliError> {
        let response = request.send().await.map_err(|error| {
            if error.is_builder() {
                CliError::usage(format!("`{}` is not a server's address", self.url))
                    .hint("write it like http://host:9000")
            } else if error.is_timeout() && !error.is_connect() {
                self.unanswered()
            } else {
                CliError::Unreachable { url: self.url.clone(), reason: reason(&error) }
            }
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        // What does not come in time is not waited for: that it failed is known.
        let body = tokio::time::timeout(ANSWER_LIMIT, beginning(response, ERROR_BYTES_MAX)).await;
        let message = error_message(&body.ok().and_then(Result::ok).unwrap_or_default())
            .unwrap_or_else(|| format!("the server answered {status}"));
        Err(match status.as_u16() {
            401 | 403 => CliError::failed(message).hint("set AIHOST_API_KEY to a key of the server"),
            _ => CliError::failed(message),
        })
    }
}

/// What a command sends where the environment names no key: the first that is not for batch work, since someone waits.
fn first_key(config: &Config) -> Option<String> {
    config.api_keys.iter().min_by_key(|key| key.class).map(|key| key.key.clone())
}

/// The sentence of an OpenAI-shaped error.
fn error_message(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let error = body.get("error")?;
    // One line, whoever answered.
    error.get("message").or(Some(error))?.as_str().map(|message| excerpt(message, ERROR_SHOWN_BYTES))
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
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
