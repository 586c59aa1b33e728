//! Who asks: made once for each request from the key that came with it, and passed on with the request. It knows nothing of
//! how keys are sent and compared (`auth`), and nothing of how often each has asked (`quota`).

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::error::ApiError;
use crate::config::{ApiKey, Scope};
use crate::domain::{Class, ModelId};
use crate::jobs::Progress;
use crate::runtime::AccessEntry;

/// Who asks, and what they may.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    key: Option<Arc<ApiKey>>,
    /// What the log says of this request.
    access: AccessEntry,
    /// How urgent it is, where that is not what the key says.
    class: Option<Class>,
    /// Who is told how far it is.
    progress: Progress,
}

impl Caller {
    /// Somebody whose key is not asked for: they may do everything that is not asked a key for.
    pub(super) fn anyone() -> Self {
        Self { key: None, access: AccessEntry::default(), class: None, progress: Progress::default() }
    }

    /// Whoever sent this key.
    pub(super) fn of(key: Arc<ApiKey>) -> Self {
        Self { key: Some(key), ..Self::anyone() }
    }

    /// The same, with this request.
    pub(super) fn asking(self, access: AccessEntry) -> Self {
        Self { access, ..self }
    }

    /// The same, whose job this is.
    pub(super) fn waiting_for(self, class: Class, progress: Progress) -> Self {
        Self { class: Some(class.max(self.class())), progress, ..self }
    }

    /// Who is told how far this request is.
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What the log says of this request.
    pub(super) fn access(&self) -> &AccessEntry {
        &self.access
    }

    /// The key that was sent.
    pub(super) fn key(&self) -> Option<&ApiKey> {
        self.key.as_deref()
    }

    /// Whether routes of this kind are open to them.
    pub(super) fn may(&self, scope: Scope) -> bool {
        self.key().is_none_or(|key| key.scopes.contains(&scope))
    }

    /// Whether there is this model for them.
    pub(super) fn sees(&self, model: &str) -> bool {
        self.key().and_then(|key| key.models.as_ref()).is_none_or(|models| models.contains(model))
    }

    /// Whether they see all models that there are.
    pub(super) fn sees_all(&self) -> bool {
        self.narrowed().is_none()
    }

    /// The models that there are for them, unless all are.
    pub(super) fn narrowed(&self) -> Option<&BTreeSet<ModelId>> {
        self.key().and_then(|key| key.models.as_ref())
    }

    /// How urgent all is that they send.
    pub(super) fn class(&self) -> Class {
        self.class.unwrap_or_else(|| self.key().map_or_else(Class::default, |key| key.class))
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // Whoever was let in is known; a request that came another way is not answered.
        parts.extensions.get().cloned().ok_or_else(|| ApiError::internal("nobody knows who asks"))
    }
}
