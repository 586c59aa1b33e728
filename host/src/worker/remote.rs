//! A model that others run: no worker, nothing on a device, one or several addresses at which it is asked. Of those, a request
//! goes to the one that answers and has least to do; one without an answer goes to another, as long as nothing of it is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aihost_plugin_api::{MemoryPlan, ModelFacts};
use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};
use hyper::StatusCode;
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::ask::{Ask, AskBody, HttpAsk, misdirected};
use super::origin::{self, Answered, NoAnswer, Origin, Outlet};
use super::placement::{
    CancelCause, Exit, ExitReason, InstanceHandle, Loaded, Output, Outputs, Placement, StartSpec, Started,
};
use super::supervisor::WorkerPlacement;
use crate::config::RemoteConfig;
use crate::domain::{Device, Failure, FailureKind, InstanceId, RequestId};

/// How long an address that did not answer is left alone; doubles with each time in a row.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// The longest of such pauses.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The model, as the runtime sees it. Dropping it ends it.
#[derive(Debug)]
struct RemoteInstance {
    shared: Arc<Addresses>,
    runtime: Handle,
    /// Whoever is told of its end, until they are.
    end: Mutex<Option<(mpsc::Sender<Exit>, Exit)>>,
}

/// Where it is asked.
#[derive(Debug)]
struct Addresses {
    all: Vec<Address>,
    retries: u32,
    leaving: watch::Sender<bool>,
}

#[derive(Debug)]
struct Address {
    origin: Origin,
    state: Mutex<AddressState>,
}

#[derive(Debug, Default)]
struct AddressState {
    /// Requests under way.
    active: u32,
    /// Times in a row that it did not answer.
    failures: u32,
    /// Until when it is left alone.
    until: Option<Instant>,
}

/// A request under way at an address.
struct Place<'a>(&'a Address);

/// Whose certificates are trusted, found out when that is first needed.
pub type TlsSource = Arc<dyn Fn() -> Result<ClientConfig, String> + Send + Sync>;

/// Brings models up in workers, and reaches those that others run.
pub struct HostPlacement {
    /// Those that run here.
    pub workers: WorkerPlacement,
    /// Whom the others are believed by.
    pub tls: TlsSource,
}

impl std::fmt::Debug for HostPlacement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.workers.fmt(f)
    }
}

impl Placement for HostPlacement {
    fn start(&self, spec: StartSpec, exits: mpsc::Sender<Exit>) -> BoxFuture<'static, Started> {
        self.workers.start(spec, exits)
    }

    fn reach(
        &self,
        instance: InstanceId,
        remote: RemoteConfig,
        exits: mpsc::Sender<Exit>,
    ) -> BoxFuture<'static, Started> {
        let tls = Arc::clone(&self.tls);
        Box::pin(async move {
            let read = spawn_blocking(move || tls()).await;
            let tls = read.unwrap_or_else(|error| Err(error.to_string()));
            let tls = tls.map_err(|why| Failure::new(FailureKind::NotUsable, why))?;
            Ok(reach(instance, &remote, &tls, exits))
        })
    }

    fn capacity(&self, device: Device) -> Option<u64> {
        self.workers.capacity(device)
    }
}

/// Brings the model up, which is to know where it is.
fn reach(
    instance: InstanceId,
    config: &RemoteConfig,
    tls: &ClientConfig,
    exits: mpsc::Sender<Exit>,
) -> (Arc<dyn InstanceHandle>, MemoryPlan) {
    let key = config.api_key.as_ref().map(|key| ("authorization".to_owned(), format!("Bearer {}", key.0)));
    let headers: BTreeMap<String, String> = key.into_iter().collect();
    let address = |url: &String| Address { origin: Origin::new(url, &headers, tls.clone()), state: Mutex::default() };
    let all = config.urls.iter().map(address).collect();
    let shared = Arc::new(Addresses { all, retries: config.retries, leaving: watch::Sender::new(false) });
    let exit = Exit { instance, reason: ExitReason::Asked };
    let handle = RemoteInstance { shared, runtime: Handle::current(), end: Mutex::new(Some((exits, exit))) };
    (Arc::new(handle), MemoryPlan::default())
}

impl RemoteInstance {
    fn end(&self) {
        self.shared.leaving.send_replace(true);
        if let Some((exits, exit)) = self.end.lock().take() {
            // The loop may be gone too when the host shuts down.
            self.runtime.spawn(async move { exits.send(exit).await });
        }
    }
}

impl Drop for RemoteInstance {
    fn drop(&mut self) {
        self.end();
    }
}

impl InstanceHandle for RemoteInstance {
    fn load(&self, _granted: u64, _deadline: Duration) -> BoxFuture<'static, Result<Loaded, Failure>> {
        Box::pin(ready(Ok(Loaded::default())))
    }

    fn generate(&self, _request: RequestId, ask: Ask, cancelled: oneshot::Receiver<CancelCause>) -> Outputs {
        let shared = Arc::clone(&self.shared);
        Outputs::made_by(move |output| async move {
            let mut leaving = shared.leaving.subscribe();
            let last = tokio::select! {
                biased;
                // Whoever drops the sender has left too.
                _ = cancelled => Output::Done(Err(Failure::new(FailureKind::Cancelled, "the request was cancelled"))),
                _ = leaving.wait_for(|leaves| *leaves) => {
                    let message = "the model was unloaded while it served this request";
                    Output::Done(Err(Failure::new(FailureKind::ShuttingDown, message)))
                }
                last = shared.serve(ask, &output) => last,
            };
            // Whoever asked may have left.
            let _ = output.send(last).await;
        })
    }

    fn facts(&self, name: String) -> BoxFuture<'static, Option<ModelFacts>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            for address in &shared.all {
                let facts = origin::facts(&address.origin, &name).await;
                if facts.is_some() {
                    return facts;
                }
            }
            None
        })
    }

    fn progress(&self) -> Option<u32> {
        None
    }

    fn stop(&self, _grace: Duration) -> BoxFuture<'static, ()> {
        self.end();
        Box::pin(ready(()))
    }

    fn is_lost(&self) -> bool {
        false
    }

    fn pid(&self) -> Option<u32> {
        None
    }
}

impl Addresses {
    async fn serve(&self, ask: Ask, output: &mpsc::Sender<Output>) -> Output {
        match ask {
            Ask::Http(ask) => match self.ask(&ask, output).await {
                Ok(Answered { summary, .. }) => Output::Done(Ok(summary)),
                Err(failure) => Output::Done(Err(failure)),
            },
            Ask::Hold => {
                origin::wait(output).await;
                Output::Done(Ok(Bytes::new()))
            }
            Ask::Task(_) => Output::Done(Err(misdirected())),
        }
    }

    async fn ask(&self, ask: &HttpAsk, output: &mpsc::Sender<Output>) -> Result<Answered, Failure> {
        let outlet = Outlet { output: output.clone(), leaving: self.leaving.subscribe() };
        let mut tries = self.retries;
        let mut tried: Vec<usize> = Vec::new();
        loop {
            let (number, place) = self.choose(&tried)?;
            let origin = &place.0.origin;
            let (failure, may_be_sent_again) = match origin.ask(ask).await {
                Ok(answer) if is_refusal(answer.status()) && tries > 0 && ask.is_repeatable() => {
                    place.0.failed();
                    let status = answer.status();
                    (Failure::new(FailureKind::Unreachable, format!("{origin:?} answers {status}")), true)
                }
                Ok(answer) if origin.has_key() && is_key_refused(answer.status()) => {
                    let message = format!(
                        "{origin:?} does not take this host's key: {}; see `api_key:` of the entry",
                        answer.status()
                    );
                    let shown = "the service behind this model refuses this host's key; ask whoever runs this host";
                    return Err(Failure::new(FailureKind::Unreachable, message).for_clients(shown));
                }
                Ok(answer) => {
                    place.0.answered();
                    return origin::forward(answer, &outlet)
                        .await
                        .map_err(|no_answer| about(origin, no_answer.failure()));
                }
                Err(NoAnswer::Unsent(failure)) => {
                    place.0.failed();
                    (about(origin, failure), true)
                }
                Err(NoAnswer::Broken(failure)) => {
                    if failure.kind == FailureKind::Unreachable {
                        place.0.failed();
                    }
                    let failure = about(origin, failure);
                    // It may have been done all the same.
                    (failure, ask.method.is_idempotent() && ask.is_repeatable())
                }
            };
            if tries == 0 || !may_be_sent_again || failure.kind != FailureKind::Unreachable {
                return Err(failure);
            }
            tries -= 1;
            tried.push(number);
            tracing::info!(target: "worker", "a request is sent again: {failure}");
        }
    }

    /// The address that is not to be left alone and has least to do, of those that were not tried before where there are others.
    fn choose(&self, tried: &[usize]) -> Result<(usize, Place<'_>), Failure> {
        let now = Instant::now();
        let worth = |(number, address): &(usize, &Address)| {
            let state = address.state.lock();
            let tries = tried.iter().filter(|tried| *tried == number).count();
            // One that is left alone is better than none, the one that is to be tried next first.
            (tries, state.until.filter(|until| *until > now), state.active)
        };
        let best = self.all.iter().enumerate().min_by_key(worth);
        let (number, address) =
            best.ok_or_else(|| Failure::new(FailureKind::Unreachable, "the entry names no address"))?;
        address.state.lock().active += 1;
        Ok((number, Place(address)))
    }
}

impl Address {
    fn answered(&self) {
        let mut state = self.state.lock();
        (state.failures, state.until) = (0, None);
    }

    fn failed(&self) {
        let mut state = self.state.lock();
        let pause = PAUSE_FIRST.saturating_mul(1 << state.failures.min(10)).min(PAUSE_MAX);
        state.failures += 1;
        state.until = Some(Instant::now() + pause);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.state.lock().active -= 1;
    }
}

/// Whether a server says that another would do.
fn is_refusal(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE)
}

fn is_key_refused(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// A failure, with whom it is about and what to do.
fn about(origin: &Origin, failure: Failure) -> Failure {
    if failure.kind != FailureKind::Unreachable {
        return failure;
    }
    let hint = if failure.message.contains("certificate") {
        "; if it is to be trusted, name its authority in SSL_CERT_FILE"
    } else {
        "; see `url:` of the entry"
    };
    let shown = "the service behind this model does not answer; try again later";
    Failure::new(FailureKind::Unreachable, format!("{origin:?}: {failure}{hint}")).for_clients(shown)
}

impl HttpAsk {
    /// Whether it can be sent once more when it was sent.
    fn is_repeatable(&self) -> bool {
        matches!(self.body, AskBody::Whole(_))
    }
}

#[cfg(test)]
mod tests {
    use hyper::{HeaderMap, Method};

    use super::*;

    fn origin_at(url: &str) -> Origin {
        Origin::new(url, &BTreeMap::new(), origin::trusting_nobody().unwrap())
    }

    fn addresses(count: usize) -> Addresses {
        let address = |n| Address { origin: origin_at(&format!("http://127.0.0.1:{n}")), state: Mutex::default() };
        Addresses { all: (1..=count).map(address).collect(), retries: 2, leaving: watch::Sender::new(false) }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_go_where_least_is_done_and_not_where_nobody_answers() {
        let all = addresses(3);
        let (first, one) = all.choose(&[]).unwrap();
        let (second, _two) = all.choose(&[]).unwrap();
        let (third, _three) = all.choose(&[]).unwrap();
        assert_eq!([first, second, third], [0, 1, 2]);
        drop(one);
        assert_eq!(all.choose(&[]).unwrap().0, 0, "it has nothing to do");
        all.all[0].failed();
        assert_eq!(all.choose(&[]).unwrap().0, 1, "the first is left alone");
        all.all[1].failed();
        all.all[2].failed();
        all.all[0].failed();
        assert_eq!(all.choose(&[]).unwrap().0, 1, "all are left alone, and its turn comes first");
        tokio::time::advance(PAUSE_FIRST * 3).await;
        assert_eq!(all.choose(&[]).unwrap().0, 0, "pauses end");
        assert_eq!(all.choose(&[0, 1]).unwrap().0, 2, "others were tried");
        all.all[0].answered();
        assert_eq!(all.all[0].state.lock().failures, 0);
    }

    #[test]
    fn a_base_address_ends_where_paths_begin() {
        let asks = |url: &str, target: &str| {
            let ask = HttpAsk {
                method: Method::POST,
                target: target.to_owned(),
                headers: HeaderMap::new(),
                body: AskBody::Whole(Bytes::new()),
                time_limit: PAUSE_MAX,
            };
            origin_at(url).target(&ask)
        };
        for (url, target, wanted) in [
            ("https://a.b", "/v1/chat/completions", "/v1/chat/completions"),
            ("https://a.b/v1", "/v1/chat/completions", "/v1/chat/completions"),
            ("https://a.b/v1/", "/v1/models?a=1", "/v1/models?a=1"),
            ("https://a.b/openai/v1", "/v1", "/openai/v1/v1"),
            ("https://a.b/v1", "/v1x/y", "/v1/v1x/y"),
            ("http://a.b:1/x", "/v1/y", "/x/v1/y"),
            ("http://a.b:1/x", "", "/x"),
            ("http://a.b:1/x", "?a=1", "/x?a=1"),
            ("http://a.b:1", "", "/"),
            ("http://a.b:1", "?a=1", "/?a=1"),
        ] {
            assert_eq!(asks(url, target), wanted);
        }
    }
}
