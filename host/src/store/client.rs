//! The HTTP clients that files are fetched with, and what it means when one of them gets no answer.

use std::time::Duration;

use reqwest::{Client, NoProxy, Proxy, Url};

use super::failure::{Failure, Kind, causes, chain, innermost};
use super::tls::Trust;
use crate::config::Env;

/// How long a server of weights may say nothing in the middle of a file.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a server may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waits {
    /// To accept a connection, names and encryption included.
    pub(super) connect: Duration,
    /// To answer a request.
    pub(super) answer: Duration,
}

/// A client, and what its failures may be due to.
#[derive(Clone, Debug)]
pub(super) struct Http {
    pub(super) client: Client,
    waits: Waits,
    authorities: usize,
    proxied: bool,
}

/// The proxies to go through.
#[derive(Clone, Copy, Debug)]
pub(super) enum Through<'a> {
    /// Those of the environment.
    Environment(&'a Env),
    /// This one, for everything that `no_proxy` does not exclude.
    One(&'a str, &'a Env),
}

impl Http {
    /// One that trusts these authorities.
    pub(super) fn new(trust: &Trust, through: Through<'_>, waits: Waits) -> Result<Self, String> {
        let proxies = proxies(through)?;
        let proxied = !proxies.is_empty();
        let mut builder = Client::builder()
            .use_preconfigured_tls(trust.config.clone())
            .connect_timeout(waits.connect)
            .read_timeout(READ_TIMEOUT.max(waits.answer))
            .user_agent(concat!("aihost/", env!("CARGO_PKG_VERSION")))
            // The environment is read in one place only, which is not here.
            .no_proxy();
        for proxy in proxies {
            builder = builder.proxy(proxy);
        }
        let client = builder.build().map_err(|error| format!("the HTTP client cannot be set up: {}", chain(&error)))?;
        Ok(Self { client, waits, authorities: trust.authorities, proxied })
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn head(&self, url: &Url, request: reqwest::RequestBuilder) -> Result<reqwest::Response, Failure> {
        let host = url.host_str().unwrap_or("the server");
        match tokio::time::timeout(self.waits.answer, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.no_answer(host, error)),
            Err(_) => Err(silent(format!("{host} accepts connections and does not answer"), self.waits.answer)),
        }
    }

    /// A connection that was not made, or broke.
    fn no_answer(&self, host: &str, error: reqwest::Error) -> Failure {
        // The URL may have a password in it, and the sentence names the mirror anyway.
        let error = error.without_url();
        if let Some(error) = tls_error(&error) {
            return self.distrust(host, error);
        }
        if error.is_connect() && error.is_timeout() {
            return silent(
                format!("{host} accepts no connection; is there a network{}?", self.or_proxy()),
                self.waits.connect,
            );
        }
        if error.is_connect() {
            let cause = innermost(&error);
            let sentence = format!("{host} cannot be reached ({cause}); is there a network{}?", self.or_proxy());
            return Failure { sentence, kind: Kind::Unreachable };
        }
        if error.is_timeout() {
            return silent(format!("{host} accepts connections and does not answer"), READ_TIMEOUT);
        }
        match error.is_builder() || error.is_redirect() {
            true => Failure::last(format!("{host} cannot be asked: {}", chain(&error))),
            false => Failure::passing(format!("the connection to {host} broke: {}", chain(&error))),
        }
    }

    fn distrust(&self, host: &str, error: &rustls::Error) -> Failure {
        let rustls::Error::InvalidCertificate(reason) = error else {
            return Failure::last(format!("no encrypted connection to {host}: {error}"));
        };
        let remedy = match (reason, self.authorities) {
            (rustls::CertificateError::UnknownIssuer, 0) => {
                "this machine knows no certificate authority: install ca-certificates, or set SSL_CERT_FILE"
            }
            (rustls::CertificateError::UnknownIssuer, _) => {
                "this machine does not know who issued it: if a company's proxy did, set SSL_CERT_FILE to a PEM file with that authority"
            }
            _ => "do not trust it, or put the server's clock, name or certificate right",
        };
        Failure::last(format!("the certificate of {host} is not accepted ({reason}); {remedy}"))
    }

    fn or_proxy(&self) -> &'static str {
        if self.proxied { ", and does the proxy (HTTPS_PROXY) work" } else { ", or a proxy to set (HTTPS_PROXY)" }
    }
}

/// A body that broke off.
pub(super) fn broke(error: reqwest::Error) -> Failure {
    Failure::passing(format!("the connection broke: {}", chain(&error.without_url())))
}

fn silent(what: String, waited: Duration) -> Failure {
    Failure { sentence: format!("{what} ({} s waited)", waited.as_secs_f32()), kind: Kind::Silent }
}

fn proxies(through: Through<'_>) -> Result<Vec<Proxy>, String> {
    let mut proxies = Vec::new();
    let env = match through {
        Through::One(address, env) => {
            proxies.push(proxy("pip's option `proxy`", address, Proxy::all)?);
            env
        }
        Through::Environment(env) => {
            if let Some(address) = env.proxy("https") {
                proxies.push(proxy("HTTPS_PROXY (or ALL_PROXY)", address, Proxy::https)?);
            }
            if let Some(address) = env.proxy("http") {
                proxies.push(proxy("HTTP_PROXY (or ALL_PROXY)", address, Proxy::http)?);
            }
            env
        }
    };
    let direct = env.no_proxy().and_then(NoProxy::from_string);
    Ok(proxies.into_iter().map(|proxy| proxy.no_proxy(direct.clone())).collect())
}

/// The proxy at an address, which may have a password in it.
fn proxy<'a>(setting: &str, address: &'a str, new: fn(&'a str) -> reqwest::Result<Proxy>) -> Result<Proxy, String> {
    let known = address.split_once("://").is_none_or(|(scheme, _)| matches!(scheme, "http" | "https"));
    let proxy = known.then(|| new(address).ok()).flatten();
    proxy.ok_or_else(|| format!("{setting} is not the address of an HTTP proxy; write it like http://proxy:3128"))
}

/// What rustls says, wherever it lies in the error.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}
