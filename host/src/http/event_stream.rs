//! A reply of server-sent events, from wherever they come; what is silent for long says that it is there. Nothing of what the
//! events tell.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::time::{Instant, Interval, interval_at};

use super::sse;
use super::stream_body::headers;
use crate::domain::Failure;

/// Events on their way.
struct EventStream<S> {
    events: S,
    /// When to say that there will be more.
    ping: Option<Interval>,
    has_ended: bool,
}

/// Waits until there is something to send, so that an early failure is a plain refusal, and then begins the reply. A comment is
/// sent whenever nothing has come for so long; it may be the first thing that is.
pub(super) async fn respond<S>(events: S, ping: Option<Duration>) -> Result<Response, Failure>
where
    S: Stream<Item = Result<Bytes, Failure>> + Send + Unpin + 'static,
{
    let ping = ping.map(|period| interval_at(Instant::now() + period, period));
    let mut events = EventStream { events, ping, has_ended: false };
    let first = events.next().await.transpose()?;
    let rest = stream::unfold(events, async |mut events| {
        let piece = match events.next().await? {
            Ok(piece) => piece,
            Err(failure) => {
                events.has_ended = true;
                let mut out = Vec::new();
                sse::write_failure_event(&mut out, failure);
                out.into()
            }
        };
        Some((piece, events))
    });
    let body = stream::iter(first).chain(rest).map(Ok::<_, Infallible>);
    Ok((headers(sse::CONTENT_TYPE), Body::from_stream(body)).into_response())
}

impl<S: Stream<Item = Result<Bytes, Failure>> + Unpin> EventStream<S> {
    async fn next(&mut self) -> Option<Result<Bytes, Failure>> {
        if self.has_ended {
            return None;
        }
        let Some(ping) = &mut self.ping else { return self.events.next().await };
        tokio::select! {
            biased;
            event = self.events.next() => {
                ping.reset();
                event
            }
            _ = ping.tick() => {
                let mut out = Vec::new();
                sse::write_ping(&mut out);
                Some(Ok(out.into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::domain::FailureKind;

    const SECOND: Duration = Duration::from_secs(1);

    async fn text(reply: Response) -> String {
        String::from_utf8(reply.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    fn died() -> Failure {
        Failure::new(FailureKind::WorkerDied, "it died")
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_filled_where_that_is_asked_for_and_a_failure_after_it_is_an_event() {
        let late = || Box::pin(stream::once(async { tokio::time::sleep(SECOND * 5 / 2).await }).map(|()| Err(died())));
        assert!(respond(late(), None).await.is_err(), "nothing was sent, so it is a refusal");
        let told = text(respond(late(), Some(SECOND)).await.unwrap()).await;
        assert!(told.starts_with(": ping\n\n: ping\n\nevent: error\ndata: {"), "{told}");
        let whole = stream::iter([Ok(Bytes::from_static(b"data: 1\n\n"))]);
        assert_eq!(text(respond(whole, Some(SECOND)).await.unwrap()).await, "data: 1\n\n");
    }
}
