//! The tokens of a prompt, asked of the plugin that would answer it.

use aihost_plugin_api::task::{TextEvent, Token, Usage};

use super::app::App;
use super::caller::Caller;
use super::error::ApiError;
use super::generate::{Generation, TextUpdate, TextUpdates};
use super::wire::TextWork;
use crate::config::ModelConfig;
use crate::domain::Failure;

/// Why there are none.
pub(super) enum Told {
    /// Whoever answers for the model does not tell.
    Refused(ApiError),
    /// It was asked, and failed.
    Failed(Failure),
}

/// The tokens of the first prompt of a request, which is not answered, and how many they are.
pub(super) async fn tokens_of(
    app: &App,
    caller: &Caller,
    model: &ModelConfig,
    work: TextWork,
) -> Result<(Vec<Token>, Usage), Told> {
    let TextWork::Plugin(mut job) = work else {
        let message = "the engine of this model has no route that tells tokens";
        return Err(Told::Refused(ApiError::unsupported("model", message)));
    };
    if !app.handle.tells_tokens(model) {
        let message = "the plugin of this model does not tell tokens; update it, or ask another model";
        return Err(Told::Refused(ApiError::unsupported("model", message)));
    }
    job.only_tokens();
    let mut generation = Generation::new(app.handle.clone(), model.id.clone(), caller.access().clone(), *job);
    let mut tokens = Vec::new();
    while let Some(update) = std::future::poll_fn(|cx| generation.poll_update(cx)).await {
        if let TextUpdate::Event(_, TextEvent::Tokens { tokens: more, .. }) = update.map_err(Told::Failed)? {
            tokens.extend(more);
        }
    }
    Ok((tokens, generation.usage()))
}
