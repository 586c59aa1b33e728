//! One request for the whole of its life, in a task of its own: waits for the loop's decision, carries the outputs of its
//! lease to the client, and waits again if its worker died. Here alone it is noticed that a client leaves, and here all
//! clocks of a request run. It decides nothing that the scheduler could.

use std::sync::Arc;

use aihost_plugin_api::task::TextEvent;
use tokio::sync::{mpsc, oneshot};

use super::api::{Answer, OutputMode, Submitted};
use super::clocks::{Clocks, LeaseTerms};
use super::held::HeldOutputs;
use super::internal::{Internal, post};
use super::meter::{Meter, Metered};
use super::requests::RequestIds;
use super::workspace::{Part, Workspace};
use crate::domain::{Failure, FailureKind, RequestId};
use crate::worker::awake::timeout;
use crate::worker::{Ask, CancelCause, HttpOutput, InstanceHandle, Output};

/// Outputs that may wait for one client.
const OUTPUTS_MAX: usize = 64;
/// Said of a request whose client is gone.
const CLIENT_LEFT: &str = "the client left";
/// Said to a request that found no memory beside others of its model for as long as it may run.
const NO_WORKSPACE: &str =
    "other requests of this model held the memory that this one needs for too long; send it again";

/// What the loop decides about a request that waits.
#[derive(Debug)]
pub(super) enum Decision {
    Granted(Box<Lease>),
    Refused(Failure),
}

/// A granted request, and what it is served with.
#[derive(Debug)]
pub struct Lease {
    /// The number under which it was granted.
    pub request: RequestId,
    /// The instance that serves it.
    pub instance: Arc<dyn InstanceHandle>,
    /// What is asked of it.
    pub ask: Ask,
    /// What it is held to.
    pub terms: LeaseTerms,
    /// What it may take memory from beside the loaded model.
    pub(super) workspace: Option<Workspace>,
    /// Who counts it.
    pub(super) meter: Option<Meter>,
}

/// A request whose worker died before its client saw anything. Its relay waits for another decision, under a new number.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) failure: Failure,
    pub(super) again: RequestId,
    pub(super) decide: oneshot::Sender<Decision>,
}

/// How a lease ended.
#[derive(Debug)]
pub enum LeaseEnd {
    /// The client has its answer, or left.
    Answered,
    /// The worker died before it had sent anything: the client still waits behind this sender.
    Lost(mpsc::Sender<Output>, Failure),
}

/// Begins the relay of a request; what is decided about it is said on the sender.
pub(super) fn begin(
    request: RequestId,
    reply: oneshot::Sender<Submitted>,
    events: mpsc::Sender<Internal>,
    ids: RequestIds,
) -> oneshot::Sender<Decision> {
    let (decide, decision) = oneshot::channel();
    let undecided = Failure::new(FailureKind::ShuttingDown, "the host is shutting down");
    let attempt = Attempt { request, decision, undecided };
    tokio::spawn(relay(attempt, Client::Asking(reply), events, ids));
    decide
}

/// A decision that is waited for.
struct Attempt {
    request: RequestId,
    decision: oneshot::Receiver<Decision>,
    /// Told to the client if the loop ends before it decides.
    undecided: Failure,
}

/// Where answers go.
enum Client {
    /// It waits to be granted.
    Asking(oneshot::Sender<Submitted>),
    /// It was granted once, and waits for outputs.
    Reading(mpsc::Sender<Output>),
}

impl Client {
    /// Resolves when it has left.
    async fn left(&mut self) {
        match self {
            Self::Asking(reply) => reply.closed().await,
            Self::Reading(outputs) => outputs.closed().await,
        }
    }

    async fn fail(self, failure: Failure) {
        // It may have left.
        let _ = match self {
            Self::Asking(reply) => reply.send(Err(failure)).is_ok(),
            Self::Reading(outputs) => outputs.send(Output::Done(Err(failure))).await.is_ok(),
        };
    }

    fn granted(self, request: RequestId) -> mpsc::Sender<Output> {
        match self {
            Self::Asking(reply) => {
                let (sender, output) = mpsc::channel(OUTPUTS_MAX);
                // Whoever left in this very moment is noticed by its receiver being gone.
                let _ = reply.send(Ok(Answer { request, output }));
                sender
            }
            Self::Reading(outputs) => outputs,
        }
    }
}

async fn relay(mut attempt: Attempt, mut client: Client, events: mpsc::Sender<Internal>, ids: RequestIds) {
    loop {
        let decision = tokio::select! {
            biased;
            decision = &mut attempt.decision => decision,
            () = client.left() => return leave(attempt, &events).await,
        };
        let lease = match decision {
            Ok(Decision::Granted(lease)) => lease,
            Ok(Decision::Refused(failure)) => return client.fail(failure).await,
            Err(_) => return client.fail(attempt.undecided).await,
        };
        let request = lease.request;
        match carry(*lease, client.granted(request)).await {
            LeaseEnd::Answered => return post(&events, Internal::Ended(request, None)).await,
            LeaseEnd::Lost(outputs, failure) => {
                let (decide, decision) = oneshot::channel();
                attempt = Attempt { request: ids.next(), decision, undecided: failure.clone() };
                client = Client::Reading(outputs);
                let lost = Lost { failure, again: attempt.request, decide };
                // If the loop is gone, so is who could decide, and the client learns of the failure.
                post(&events, Internal::Ended(request, Some(lost))).await;
            }
        }
    }
}

/// The client left while it waited. A lease that was granted in this very moment ends at once.
async fn leave(mut attempt: Attempt, events: &mpsc::Sender<Internal>) {
    attempt.decision.close();
    match attempt.decision.try_recv() {
        Ok(Decision::Granted(lease)) => post(events, lease.unused()).await,
        Ok(Decision::Refused(_)) => {}
        Err(_) => post(events, Internal::Left(attempt.request)).await,
    }
}

impl Lease {
    /// A lease that nobody counts, of a request that takes no memory of its own.
    pub fn new(request: RequestId, instance: Arc<dyn InstanceHandle>, ask: Ask, terms: LeaseTerms) -> Self {
        Self { request, instance, ask, terms, workspace: None, meter: None }
    }

    /// Its client left before it could begin.
    pub(super) fn unused(self) -> Internal {
        let left = Failure::new(FailureKind::Cancelled, CLIENT_LEFT);
        self.meter.into_iter().for_each(|meter| meter.refused(&left));
        Internal::Ended(self.request, None)
    }
}

/// Serves until the instance says it is done. The client leaving, stalling or running out of time cancels, but does not
/// end the lease: only the instance does.
pub async fn carry(lease: Lease, client: mpsc::Sender<Output>) -> LeaseEnd {
    let Lease { request, instance, ask, terms, workspace, meter } = lease;
    let mut clocks = Clocks::start(terms);
    let workspace_part = tokio::select! {
        biased;
        () = client.closed() => Err(Failure::new(FailureKind::Cancelled, CLIENT_LEFT)),
        workspace_part = reserve_workspace(&*instance, &ask, workspace) => workspace_part,
        _ = clocks.overdue() => Err(Failure::new(FailureKind::Busy, NO_WORKSPACE)),
    };
    let _part = match workspace_part {
        Ok(part) => part,
        Err(failure) if failure.kind == FailureKind::WorkerDied => return LeaseEnd::Lost(client, failure),
        Err(failure) => {
            meter.into_iter().for_each(|meter| meter.refused(&failure));
            // In a task of its own: the lease does not wait until the client reads.
            tokio::spawn(Client::Reading(client).fail(failure));
            return LeaseEnd::Answered;
        }
    };
    let (cancel, cancelled) = oneshot::channel();
    let outputs = Metered::new(instance.generate(request, ask, cancelled), meter);
    clocks.worker_asked();
    let mut delivering = Delivering::new(client, outputs, cancel, terms);
    loop {
        let output = tokio::select! {
            biased;
            () = left(delivering.client.as_ref()) => {
                delivering.give_up(CancelCause::ClientLeft, FailureKind::Cancelled);
                continue;
            }
            failure = clocks.overdue(), if delivering.client.is_some() => {
                delivering.end_early(CancelCause::Overdue, failure).await;
                continue;
            }
            output = delivering.outputs.recv() => output.unwrap_or_else(|| Output::Done(Err(silent()))),
            failure = clocks.silent(), if delivering.client.is_some() => {
                delivering.end_early(CancelCause::Silent, failure).await;
                continue;
            }
        };
        if let Some(end) = delivering.deliver(output).await {
            return end;
        }
        clocks.sign_of_life();
    }
}

/// A lease whose worker was asked: what is still to be told to whom.
struct Delivering {
    /// `None` once it left or was told of the end.
    client: Option<mpsc::Sender<Output>>,
    outputs: Metered,
    /// `None` once it was used.
    cancel: Option<oneshot::Sender<CancelCause>>,
    terms: LeaseTerms,
    /// Whether the client was told nothing of the answer.
    untouched: bool,
    /// What is not told before all of it is there.
    held: HeldOutputs,
}

impl Delivering {
    fn new(
        client: mpsc::Sender<Output>,
        outputs: Metered,
        cancel: oneshot::Sender<CancelCause>,
        terms: LeaseTerms,
    ) -> Self {
        let (client, cancel) = (Some(client), Some(cancel));
        Self { client, outputs, cancel, terms, untouched: true, held: HeldOutputs::default() }
    }

    /// The client's part ends here; the worker is told, and its end awaited.
    fn give_up(&mut self, cause: CancelCause, outcome: FailureKind) {
        self.client = None;
        self.outputs.cut(outcome);
        if let Some(cancel) = self.cancel.take() {
            // It may have ended in this very moment.
            let _ = cancel.send(cause);
        }
    }

    /// The same for a client that is still there.
    async fn end_early(&mut self, cause: CancelCause, failure: Failure) {
        let client = self.client.take();
        self.give_up(cause, failure.kind);
        tell(client, Output::Done(Err(failure)), &self.terms).await;
    }

    /// Passes an output on, or holds it back; how the lease ended, if that was the last.
    async fn deliver(&mut self, output: Output) -> Option<LeaseEnd> {
        let (output, goes_on) = match output {
            // The client has its end, and the lease goes on for what the engine still does.
            Output::Http(HttpOutput::Answered(summary)) => (Output::Done(Ok(summary)), true),
            output => (output, false),
        };
        let (output, may_be_asked_again) = match output {
            // Nobody has seen it: another worker may be asked, whatever it is.
            Output::Http(HttpOutput::Unsent(failure)) => (Output::Done(Err(failure)), true),
            output => (output, self.terms.delivery != OutputMode::Once),
        };
        if let Output::Progress { .. } = output {
            // Not part of the answer: a request that only told how far it is can be tried again, and a client who is
            // behind does without.
            if let Some(client) = &self.client {
                let _ = client.try_send(output);
            }
            return None;
        }
        if let (Output::Done(Err(failure)), Some(waiting), true) = (&output, &self.client, self.untouched)
            && failure.kind == FailureKind::WorkerDied
            && may_be_asked_again
        {
            return Some(LeaseEnd::Lost(waiting.clone(), failure.clone()));
        }
        let done = matches!(output, Output::Done(_));
        // What an output says is looked at until one shows something, and not for each token.
        let may_wait = self.untouched && (self.terms.delivery == OutputMode::Gathered || shows_nothing(&output));
        if may_wait && self.held.hold(&output) {
            return None;
        }
        self.untouched = false;
        for output in self.held.take().chain([output]) {
            if !tell(self.client.clone(), output, &self.terms).await && self.client.take().is_some() && !done {
                self.give_up(CancelCause::ClientLeft, FailureKind::Cancelled);
            }
        }
        if !done {
            return None;
        }
        if goes_on {
            self.client = None;
            return None;
        }
        self.outputs.end();
        Some(LeaseEnd::Answered)
    }
}

/// Whether an output is of an answer's beginning, and no client sees it before the next one.
fn shows_nothing(output: &Output) -> bool {
    let Output::Event(json) = output else { return false };
    matches!(serde_json::from_slice(json), Ok(TextEvent::Prompt { .. }))
}

/// Sets aside what a request needs; its plugin says what that is.
async fn reserve_workspace(
    instance: &dyn InstanceHandle,
    ask: &Ask,
    workspace: Option<Workspace>,
) -> Result<Option<Part>, Failure> {
    // An engine that answers HTTP itself says nothing of what a request costs.
    let (Some(workspace), Ask::Task(task)) = (workspace, ask) else { return Ok(None) };
    let cost = instance.cost(task.clone()).await?;
    workspace.take(cost).await.map(Some)
}

fn silent() -> Failure {
    Failure::new(FailureKind::WorkerDied, "the model's worker ended without an answer")
}

/// Resolves when the client's receiver is gone; never, once that is known.
async fn left(client: Option<&mpsc::Sender<Output>>) {
    match client {
        Some(client) => client.closed().await,
        None => std::future::pending().await,
    }
}

/// Whether the client took it in time.
async fn tell(client: Option<mpsc::Sender<Output>>, output: Output, terms: &LeaseTerms) -> bool {
    let Some(client) = client else { return false };
    timeout(terms.stall_timeout, client.send(output)).await.is_some_and(|sent| sent.is_ok())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use bytes::Bytes;
    use futures_util::future::BoxFuture;

    use super::super::clocks::OutputLimits;
    use super::*;
    use crate::worker::{Loaded, Outputs};

    /// Does nothing; its outputs come from the test.
    #[derive(Debug)]
    struct SilentInstance(Mutex<Option<mpsc::Receiver<Output>>>);

    impl InstanceHandle for SilentInstance {
        fn load(&self, _granted: u64, _deadline: Duration) -> BoxFuture<'static, Result<Loaded, Failure>> {
            Box::pin(async { Ok(Loaded::default()) })
        }

        fn generate(&self, _request: RequestId, _ask: Ask, _cancelled: oneshot::Receiver<CancelCause>) -> Outputs {
            self.0.lock().unwrap().take().unwrap().into()
        }

        fn progress(&self) -> Option<u32> {
            None
        }

        fn stop(&self, _grace: Duration) -> BoxFuture<'static, ()> {
            Box::pin(async {})
        }

        fn is_lost(&self) -> bool {
            false
        }

        fn pid(&self) -> Option<u32> {
            None
        }
    }

    /// Whether a worker that sent this and died leaves its request to be tried again.
    async fn is_lost_after(output: Output, delivery: OutputMode) -> bool {
        let (ended, mut received) = ended_after(vec![output], delivery).await;
        assert!(received.try_recv().is_ok(), "the client was not told");
        matches!(ended, LeaseEnd::Lost(..))
    }

    /// What becomes of a request whose worker sends this and dies, and what its client is told.
    async fn ended_after(sent: Vec<Output>, delivery: OutputMode) -> (LeaseEnd, mpsc::Receiver<Output>) {
        let (sender, outputs) = mpsc::channel(4);
        let (client, received) = mpsc::channel(4);
        for output in sent {
            sender.send(output).await.unwrap();
        }
        sender.send(Output::Done(Err(silent()))).await.unwrap();
        let hour = Duration::from_secs(3600);
        let output = OutputLimits { first: hour, stall: hour };
        let terms = LeaseTerms { request_timeout: hour, stall_timeout: hour, output, delivery };
        let instance = Arc::new(SilentInstance(Mutex::new(Some(outputs))));
        (carry(Lease::new(RequestId(1), instance, Ask::Hold, terms), client).await, received)
    }

    #[tokio::test]
    async fn progress_is_no_part_of_the_answer_but_bytes_are() {
        let streamed = OutputMode::Streamed;
        assert!(is_lost_after(Output::Progress { done: 1, total: 2 }, streamed).await);
        assert!(!is_lost_after(Output::Bytes(Bytes::from_static(b"pcm")), streamed).await);
        assert!(!is_lost_after(Output::Event(Bytes::from_static(b"{}")), streamed).await);
    }

    #[tokio::test]
    async fn how_long_a_prompt_is_shows_nothing_of_the_answer() {
        let prompt = Output::Event(Bytes::from_static(br#"{"type":"prompt","tokens":3,"cached":0}"#));
        let text = Output::Event(Bytes::from_static(br#"{"type":"text","text":"a"}"#));
        for (outputs, is_lost, told) in [(vec![prompt.clone()], true, 0), (vec![prompt, text], false, 3)] {
            let (ended, mut received) = ended_after(outputs, OutputMode::Streamed).await;
            let mut found = 0;
            while received.try_recv().is_ok() {
                found += 1;
            }
            assert_eq!((matches!(ended, LeaseEnd::Lost(..)), found), (is_lost, told));
        }
    }

    #[tokio::test]
    async fn what_may_be_done_once_is_not_asked_of_another_worker() {
        assert!(!is_lost_after(Output::Progress { done: 1, total: 2 }, OutputMode::Once).await);
    }
}
