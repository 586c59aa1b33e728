//! Answered responses, kept for a while so that their conversations can go on: each for the key that it was asked with.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::error::ApiError;

/// How long one is kept.
const KEPT_FOR: Duration = Duration::from_secs(3600);
/// Bytes that those of one key may take; the oldest leave first.
const KEPT_BYTES: usize = 64 << 20;
/// Bytes that all of them may take.
const ALL_KEPT_BYTES: usize = 256 << 20;

/// All that are kept.
#[derive(Debug, Default)]
pub(super) struct Conversations {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    by_id: HashMap<String, Conversation>,
    /// Oldest first. Those that were removed may be among them.
    order: VecDeque<String>,
    bytes: usize,
    bytes_by_key: HashMap<Option<String>, usize>,
}

/// A conversation up to an answer. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Conversation {
    key: Option<String>,
    kept_at: Instant,
    /// All its turns, as messages of a chat.
    turns: Bytes,
    /// The answer, as its client got it.
    response: Bytes,
}

impl Conversations {
    /// Keeps a conversation and its answer.
    pub(super) fn keep(&self, key: Option<String>, id: &str, turns: &RawValue, response: Vec<u8>) {
        let (turns, response) = (Bytes::copy_from_slice(turns.get().as_bytes()), response.into());
        let conversation = Conversation { key, kept_at: Instant::now(), turns, response };
        let mut kept = self.kept.lock();
        kept.remove_old();
        let bytes = conversation.bytes(id);
        if bytes > KEPT_BYTES {
            return;
        }
        let own = kept.bytes_by_key.get(&conversation.key).copied().unwrap_or_default();
        kept.make_room(&conversation.key, (own + bytes).saturating_sub(KEPT_BYTES));
        kept.make_room_anywhere(bytes);
        kept.bytes += bytes;
        *kept.bytes_by_key.entry(conversation.key.clone()).or_default() += bytes;
        kept.order.push_back(id.to_owned());
        kept.by_id.insert(id.to_owned(), conversation);
    }

    /// The one of this id, if it was asked with this key.
    pub(super) fn get(&self, key: Option<&str>, id: &str) -> Option<Conversation> {
        let mut kept = self.kept.lock();
        kept.remove_old();
        kept.by_id.get(id).filter(|conversation| conversation.key.as_deref() == key).cloned()
    }

    /// Forgets it. Whether there was one.
    pub(super) fn forget(&self, key: Option<&str>, id: &str) -> bool {
        let has = self.get(key, id).is_some();
        if has {
            self.kept.lock().remove(id);
        }
        has
    }
}

impl Kept {
    fn remove(&mut self, id: &str) {
        let Some(conversation) = self.by_id.remove(id) else { return };
        let bytes = conversation.bytes(id);
        self.bytes -= bytes;
        if let Some(own) = self.bytes_by_key.get_mut(&conversation.key) {
            *own -= bytes;
            if *own == 0 {
                self.bytes_by_key.remove(&conversation.key);
            }
        }
    }

    fn remove_old(&mut self) {
        while let Some(oldest) = self.order.front() {
            let is_over = self.by_id.get(oldest).is_none_or(|conversation| conversation.kept_at.elapsed() >= KEPT_FOR);
            if !is_over {
                break;
            }
            if let Some(id) = self.order.pop_front() {
                self.remove(&id);
            }
        }
    }

    /// Removes the oldest of a key until it has so many bytes less.
    fn make_room(&mut self, key: &Option<String>, mut bytes: usize) {
        let mut of_key = Vec::new();
        for id in &self.order {
            let Some(conversation) = self.by_id.get(id).filter(|conversation| conversation.key == *key) else {
                continue;
            };
            if bytes == 0 {
                break;
            }
            bytes = bytes.saturating_sub(conversation.bytes(id));
            of_key.push(id.clone());
        }
        of_key.iter().for_each(|id| self.remove(id));
    }

    /// Removes the oldest of anyone until there is room for so many bytes.
    fn make_room_anywhere(&mut self, bytes: usize) {
        while self.bytes + bytes > ALL_KEPT_BYTES {
            let Some(id) = self.order.pop_front() else { break };
            self.remove(&id);
        }
    }
}

impl Conversation {
    /// Its turns, as messages of a chat.
    pub(super) fn messages(&self) -> Result<Vec<&RawValue>, ApiError> {
        serde_json::from_slice(&self.turns).map_err(|error| ApiError::internal(error.to_string()))
    }

    /// The answer, as its client got it.
    pub(super) fn response(&self) -> Bytes {
        self.response.clone()
    }

    fn bytes(&self, id: &str) -> usize {
        // What a table takes for each is about what a short one takes.
        self.turns.len() + self.response.len() + 3 * id.len() + 256
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn turns(bytes: usize) -> Box<RawValue> {
        serde_json::value::to_raw_value(&json!([{"role": "user", "content": "x".repeat(bytes)}])).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn one_is_kept_for_an_hour_and_for_its_key_alone() {
        let all = Conversations::default();
        all.keep(Some("a".into()), "r1", &turns(1), Vec::new());
        all.keep(None, "r2", &turns(1), Vec::new());
        assert!(all.get(Some("a"), "r1").is_some() && all.get(None, "r2").is_some());
        assert!(
            all.get(None, "r1").is_none() && all.get(Some("b"), "r1").is_none() && all.get(Some("a"), "r2").is_none()
        );
        assert!(!all.forget(None, "r1") && all.forget(None, "r2") && !all.forget(None, "r2"));
        tokio::time::advance(KEPT_FOR - Duration::from_secs(1)).await;
        assert!(all.get(Some("a"), "r1").is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(all.get(Some("a"), "r1").is_none());
        let kept = all.kept.lock();
        assert_eq!((kept.bytes, kept.bytes_by_key.len(), kept.order.len()), (0, 0, 0));
    }

    #[test]
    fn the_oldest_of_a_key_leave_for_its_newest_and_for_nobody_else() {
        let all = Conversations::default();
        all.keep(None, "other", &turns(1), Vec::new());
        let third = KEPT_BYTES / 3;
        for id in ["r1", "r2", "r3"] {
            all.keep(Some("a".into()), id, &turns(third), Vec::new());
        }
        assert!(all.get(Some("a"), "r1").is_none(), "three do not fit");
        assert!(["r2", "r3"].iter().all(|id| all.get(Some("a"), id).is_some()));
        all.keep(Some("a".into()), "huge", &turns(KEPT_BYTES), Vec::new());
        assert!(all.get(Some("a"), "huge").is_none() && all.get(Some("a"), "r3").is_some());
        assert!(all.get(None, "other").is_some());
        for number in 0..8 {
            all.keep(Some(number.to_string()), &format!("k{number}"), &turns(KEPT_BYTES - 1000), Vec::new());
        }
        let kept = all.kept.lock();
        assert!(kept.bytes <= ALL_KEPT_BYTES && kept.by_id.contains_key("k7") && !kept.by_id.contains_key("r2"));
    }
}
