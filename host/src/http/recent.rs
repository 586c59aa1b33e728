//! The last requests, as the access log has them, for whoever looks at a host. Nothing of what they asked or were answered.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use crate::domain::ModelId;

/// Requests that are told of; the oldest goes first.
pub(super) const REQUESTS_MAX: usize = 200;

/// A request that was answered, or was not.
#[derive(Debug, Serialize)]
pub(super) struct RecentRequest {
    /// Counts up while the host runs.
    pub(super) number: u64,
    /// When it ended, in milliseconds since 1970.
    pub(super) ended_ms: u64,
    pub(super) id: String,
    /// The name of the key that it came with.
    pub(super) key: Option<String>,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) model: Option<ModelId>,
    pub(super) status: u16,
    pub(super) code: Option<Cow<'static, str>>,
    pub(super) cause: Option<String>,
    pub(super) queue_ms: Option<u64>,
    pub(super) swap_ms: Option<u64>,
    pub(super) first_token_ms: Option<u64>,
    pub(super) tokens_in: Option<u64>,
    pub(super) tokens_out: Option<u64>,
    pub(super) duration_ms: u64,
}

/// The last of them.
#[derive(Debug, Default)]
pub(super) struct RecentRequests(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    last: u64,
    requests: VecDeque<Arc<RecentRequest>>,
}

impl RecentRequests {
    /// It ended.
    pub(super) fn add(&self, request: RecentRequest) {
        let mut kept = self.0.lock();
        kept.last += 1;
        let request = RecentRequest { number: kept.last, ..request };
        if kept.requests.len() >= REQUESTS_MAX {
            kept.requests.pop_front();
        }
        kept.requests.push_back(Arc::new(request));
    }

    /// Those after this one, the newest last.
    pub(super) fn after(&self, number: u64) -> Vec<Arc<RecentRequest>> {
        let kept = self.0.lock();
        let newer = kept.requests.iter().rev().take_while(|request| request.number > number);
        let mut newer: Vec<_> = newer.cloned().collect();
        newer.reverse();
        newer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: &str) -> RecentRequest {
        RecentRequest {
            number: 0,
            ended_ms: 1,
            id: id.to_owned(),
            key: None,
            method: "POST".to_owned(),
            path: "/v1/chat/completions".to_owned(),
            model: None,
            status: 200,
            code: None,
            cause: None,
            queue_ms: None,
            swap_ms: None,
            first_token_ms: None,
            tokens_in: None,
            tokens_out: None,
            duration_ms: 1,
        }
    }

    #[test]
    fn the_last_are_kept_and_told_once() {
        let recent = RecentRequests::default();
        (0..REQUESTS_MAX * 3).for_each(|number| recent.add(request(&number.to_string())));
        let all = recent.after(0);
        assert_eq!(all.len(), REQUESTS_MAX);
        assert_eq!(all.last().unwrap().id, (REQUESTS_MAX * 3 - 1).to_string());
        assert!(all.windows(2).all(|two| two[0].number + 1 == two[1].number));
        let last = all.last().unwrap().number;
        assert!(recent.after(last).is_empty());
        recent.add(request("new"));
        assert_eq!(recent.after(last).iter().map(|request| request.id.as_str()).collect::<Vec<_>>(), ["new"]);
    }
}
