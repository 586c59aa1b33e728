//! A request on its way through an engine, and how it ends: once, from whatever thread has its last word.

use std::sync::Arc;

use super::context::Context;
use super::outlet::Outlet;
use super::plugin::Task;
use super::{Error, ErrorKind, Result};
use crate::abi::{RawContextArc, RawRequest, RawSinkArc, event_kind};
use crate::task::{FinishReason, Request, TextEvent, TextFinish, Token, Usage};

/// Tokens of an input in one event.
const TOKENS_AT_ONCE: usize = 1024;

/// A request that an engine has taken.
#[derive(Debug)]
#[non_exhaustive]
pub struct Job<T: Task> {
    /// What is asked.
    pub request: T::Request,
    /// Where its answer goes.
    pub reply: Reply<T>,
}

/// Where one request's answer goes. Dropped before its end was said, it fails the request.
pub struct Reply<T: Task> {
    output: T::Output,
    ctx: Context,
    sink: Arc<RawSinkArc>,
}

impl<T: Task> std::fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply").field("ctx", &self.ctx).finish_non_exhaustive()
    }
}

impl<T: Task> Job<T> {
    /// The request as it crossed.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if its header is of a form that this SDK does not know.
    pub(super) fn new(request: RawRequest, sink: RawSinkArc, ctx: RawContextArc) -> Result<Self> {
        let request: T::Request = decode(request)?;
        let (ctx, sink) = (Context::new(ctx), Arc::new(sink));
        let output = T::output(&request, Outlet::new(Arc::clone(&sink), ctx.clone()));
        Ok(Self { request, reply: Reply { output, ctx, sink } })
    }

    /// Serves it here and now: what this returns is its end.
    pub fn run(self, serve: impl FnOnce(T::Request, &T::Output, &Context) -> Result<T::Finish>) {
        let Self { request, reply } = self;
        let result = serve(request, &reply.output, &reply.ctx);
        reply.finish(result);
    }
}

impl<T: Task> Reply<T> {
    /// What the answer is pushed into.
    pub fn output(&self) -> &T::Output {
        &self.output
    }

    /// The request's cancellation, and what is known of it.
    pub fn context(&self) -> &Context {
        &self.ctx
    }

    /// Ends the request. An error that an output call returned because the client left, or a stop string was found, is a
    /// normal end.
    pub fn finish(self, result: Result<T::Finish>) {
        let summary =
            T::finish(&self.output, result).and_then(|summary| serde_json::to_vec(&summary).map_err(Error::internal));
        match summary {
            Ok(summary) => self.sink.finish(summary.as_slice().into()),
            Err(error) => self.sink.fail(error.into()),
        }
    }
}

impl<T: Task> Reply<T> {
    /// Ends a request for the tokens of its input with them.
    pub(super) fn tell(self, tokens: Result<Vec<Token>>) {
        let told = tokens.and_then(|tokens| {
            let outlet = Outlet::new(Arc::clone(&self.sink), self.ctx.clone());
            for some in tokens.chunks(TOKENS_AT_ONCE) {
                let event = TextEvent::Tokens { tokens: some.to_vec() };
                let flow = outlet.push(event_kind::JSON, &serde_json::to_vec(&event).map_err(Error::internal)?)?;
                outlet.pace(flow)?;
            }
            let usage = Usage::default().prompt_tokens(u32::try_from(tokens.len()).unwrap_or(u32::MAX));
            serde_json::to_vec(&TextFinish::new(FinishReason::Stop).usage(usage)).map_err(Error::internal)
        });
        match told {
            Ok(summary) => self.sink.finish(summary.as_slice().into()),
            Err(error) => self.sink.fail(error.into()),
        }
    }
}

/// A request of a kind from what crossed.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) if its header is of a form that this SDK does not know: the host checked what its
/// client sent, so that the host and the plugin are of different ages, and no client can do anything about it.
pub(super) fn decode<R: Request>(request: RawRequest) -> Result<R> {
    let header: R = serde_json::from_slice(&request.header).map_err(|e| {
        let message = format!("the plugin cannot read this form of request; build it with the SDK of this host: {e}");
        Error::new(ErrorKind::Unsupported, message)
    })?;
    Ok(header.with_blocks(request.blocks.into_iter().map(Into::into).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{ImageRequest, TextRequest};

    fn read<R: Request + std::fmt::Debug>(header: &[u8]) -> Result<R> {
        decode(RawRequest { header: header.to_vec().into(), blocks: Vec::new().into() })
    }

    #[test]
    fn no_client_is_blamed_for_a_newer_host() {
        for error in [
            read::<TextRequest>(br#"{"input": {"type": "pictures", "pictures": []}}"#).unwrap_err(),
            read::<TextRequest>(br#"{"messages": []}"#).unwrap_err(),
            read::<ImageRequest>(b"[").unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.message().contains("build it with the SDK"), "{error}");
        }
        let newer = read::<TextRequest>(br#"{"input": {"type": "prompt", "text": "x", "new": 1}, "grammar": {}}"#);
        assert_eq!(newer.unwrap(), TextRequest::prompt("x"));
    }
}
